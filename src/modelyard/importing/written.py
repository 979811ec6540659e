"""An import as the text of a configuration: commented, and accepted by the loader.

Called by the command line. `text_of` leaves out what the loader, the engine or the disk would refuse, and
says so in the remarks; `save` writes the file whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from modelyard.config import Config, ConfigErrors, load
from modelyard.engines.llamacpp import LlamaCppEngine
from modelyard.errors import ConfigError
from modelyard.importing.imported import Imported, Remark, as_written, references
from modelyard.store import split
from modelyard.store.hub import HubFiles
from modelyard.store.local import absent

WIDTH = 100


def text_of(imported: Imported, target: Path, environ: Mapping[str, str], *, elsewhere: bool) -> str:
    """The configuration's text. Models that cannot be served are taken out of `imported`, with a remark;
    with `elsewhere` those whose files are not on this machine stay. Raises ConfigErrors when the rest is
    refused, and ConfigError when no model is left."""
    while imported.models:
        text = _rendered(imported)
        unset = dict.fromkeys(references(_dumped({"": _sections(imported)})), "unset")
        try:
            config = load(target, text, {**unset, **environ})
        except ConfigErrors as error:
            problems = [(problem.path, problem.message) for problem in error.problems]
            if not _drop(imported, problems):
                raise
            continue
        if not _drop(imported, list(_refused(config, elsewhere))):
            return text
    raise ConfigError("", f"{imported.source}: none of its {imported.found} models can be imported")


def report(imported: Imported) -> str:
    """All remarks, for people."""
    lines: list[str] = []
    for title, lost in (("Not supported yet:", True), ("Notes:", False)):
        remarks = [remark for remark in imported.remarks if remark.lost is lost]
        lines += ["", title] if remarks else []
        lines += [f"  {one_line(f'{remark.path}: {remark.message}')}" for remark in remarks]
    return "\n".join(lines)


def save(text: str, target: Path, mode: int, *, force: bool) -> None:
    """Write a file at once, with these permissions. Raises ConfigError when it is there already and `force`
    is not said, and when it cannot be written."""
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(handle)
                os.fchmod(handle, mode)
            if force:
                os.replace(name, target)
            else:
                os.link(name, target)  # unlike a rename it puts nothing out
        finally:
            Path(name).unlink(missing_ok=True)
    except FileExistsError:
        raise ConfigError("", f"{target} is there already; name another file, or say --force") from None
    except OSError as error:
        raise ConfigError("", f"cannot write {target}: {error.strerror}") from None


def _refused(config: Config, elsewhere: bool) -> Iterator[tuple[str, str]]:
    """What a start would refuse of the models: (path, message)."""
    engine = LlamaCppEngine()
    for model in config.models:
        for path, message in engine.problems(model.spec, config.profiles[model.spec.engine]):
            yield f"{model.path}.{path}", message
        for source in engine.sources(model.spec).values():
            of_each = _of_the_hub if source.startswith("hf://") else absent
            problem = split.problem(source, of_each)
            if problem is not None and not (elsewhere and "://" not in source):
                yield f"{model.path}.source", problem


def _of_the_hub(source: str) -> str | None:
    hub = HubFiles({})
    if problem := hub.problem(source):
        return problem
    return "names a folder of a repository; name a GGUF file in it" if hub.is_folder(source) else None


def _drop(imported: Imported, problems: list[tuple[str, str]]) -> bool:
    """Leave out the models that problems are about, or whose engine profile. Whether there was one."""
    before = len(imported.models)
    for path, message in problems:
        name = _named(path, "models", imported.models)
        engine = _named(path, "engines", imported.engines)
        users = [user for user, model in imported.models.items() if model["engine"] == engine]
        if name:
            imported.leave_out(name, path, message)
        for model in users if engine else ():
            imported.leave_out(model, f"models.{model}", f"{path} {message}")
    return len(imported.models) < before


def _named(path: str, section: str, names: Iterable[str]) -> str:
    """Which of the names in a section a path leads to; names may hold dots themselves."""
    for name in sorted(names, key=len, reverse=True):
        whole = f"{section}.{name}"
        if path == whole or path.startswith((f"{whole}.", f"{whole}[")):
            return name
    return ""


# -- text -----------------------------------------------------------------------------------------------


def _sections(imported: Imported) -> dict[str, Any]:
    used = {model["engine"] for model in imported.models.values()}
    sections: dict[str, Any] = {
        "engines": {name: section for name, section in imported.engines.items() if name in used},
        "defaults": imported.defaults,
        "keys": imported.keys,
        "preload": [name for name in imported.preload if name in imported.models],
        "models": imported.models,
    }
    return {name: section for name, section in sections.items() if section}


def _rendered(imported: Imported) -> str:
    lines = [
        f"# Made from {one_line(imported.source)}: {len(imported.models)} of {imported.found} models.",
        "# Every field: docs/reference/config.md, or `modelyard schema`.",
    ]
    general = [remark for remark in imported.remarks if remark.model not in imported.models]
    if general:
        lines += ["#", *(line for remark in general for line in _comment(remark))]
    sections = _sections(imported)
    models = sections.pop("models")
    for name, section in sections.items():
        lines += ["", *_dumped({name: section}, filled=True).splitlines()]
    lines += ["", "models:"]
    for name, section in models.items():
        own = [remark for remark in imported.remarks if remark.model == name]
        body = [line for remark in own for line in _comment(remark, f"models.{name}.", f"{name}: ")]
        body += _dumped({name: section}, filled=True).splitlines()
        lines += [f"  {line}" if line else "" for line in body]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _comment(remark: Remark, *known: str) -> list[str]:
    """The remark as comment lines; what is `known` from where it stands is left out of its path."""
    path = remark.path
    for beginning in known:
        path = path.removeprefix(beginning)
    kind = "not supported yet" if remark.lost else "note"
    text = one_line(f"{kind}: {path}: {remark.message}")
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent="# ",
        subsequent_indent="#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def one_line(text: str) -> str:
    """The text with references as they are written, in one line of printable signs."""
    return "".join(char if char.isprintable() else " " for char in as_written(text))


class _Dumper(yaml.SafeDumper):
    """Texts with a reference are quoted: unquoted, YAML's types would be looked for in what is filled in."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value.replace("${", "$${"), '"' if references(value) else None
    )


_Dumper.add_representer(str, _text)


def _dumped(sections: Mapping[str, Any], *, filled: bool = False) -> str:
    text: str = yaml.dump(
        sections, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=WIDTH
    )
    return as_written(text) if filled else text
