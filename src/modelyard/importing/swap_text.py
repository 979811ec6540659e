"""The text of a llama-swap configuration: YAML in, one tree with its macros filled out.

Used by `llama_swap` alone. It knows how llama-swap reads its file (YAML 1.2's words, macros from the last to
the first, a model's over the global ones), and no field but `macros` and `models`. `${PORT}`, `${PID}` stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modelyard.errors import ConfigError
from modelyard.importing.imported import reference

LARGEST = 2**20
MOST_VALUES = 50_000
LONGEST = 2**16  # characters of a text with its macros
_VARIABLE = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_MACRO = re.compile(r"\$\{([a-zA-Z0-9_-]+)\}")
_KEPT = frozenset({"PORT", "PID"})
_TAG = "tag:yaml.org,2002:"


@dataclass(slots=True)
class SwapText:
    """`general` is everything but `models` and `macros`; `unknown` the macros that nobody defined, each with
    where it was used."""

    general: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Types as llama-swap's YAML has them: `on` and `yes` are texts, `1:30` is no number."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        written: set[str] = set()
        for key, _ in node.value:
            if key.value in written and key.tag != f"{_TAG}merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is written twice", key.start_mark
                )
            written.add(key.value)
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def read(path: Path) -> SwapText:
    """The file's tree. Raises ConfigError when it cannot be read or is not what llama-swap takes."""
    tree = _tree(path)
    macros = _macros(tree.pop("macros", None), "macros")
    models = tree.pop("models", None)
    text = SwapText()
    text.general = {name: _filled(value, macros, name, text.unknown) for name, value in tree.items()}
    for model, section in _mapping(models, "models").items():
        path_of = f"models.{model}"
        own = dict(_mapping(section, path_of))
        scope = {"MODEL_ID": model, **macros, **_macros(own.pop("macros", None), f"{path_of}.macros")}
        for command in ("cmd", "cmdStop"):  # a comment's macro must not become a part of the command
            if isinstance(own.get(command), str):
                own[command] = without_comments(own[command])
        text.models[model] = {
            name: _filled(value, scope, f"{path_of}.{name}", text.unknown) for name, value in own.items()
        }
    return text


def without_comments(command: str) -> str:
    """A command without its lines that begin with `#`."""
    return "\n".join(line for line in command.split("\n") if not line.strip().startswith("#"))


def _tree(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError("", f"cannot read {path}: {error.strerror}") from None
    if len(raw) > LARGEST:
        raise ConfigError("", f"{path} is larger than 1 MiB")
    try:
        tree = yaml.load(raw.decode("utf-8-sig"), _Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError:
        raise ConfigError("", f"{path} is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError("", f"{path}{line} is not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        raise ConfigError("", f"{path} is not YAML that can be read") from None
    tree = _bounded(tree, [0])
    if not isinstance(tree, dict) or not isinstance(tree.get("models"), dict) or not tree["models"]:
        raise ConfigError("", f"{path} is no configuration of llama-swap: it has no `models:`")
    return tree


def _bounded(value: Any, count: list[int], depth: int = 0) -> Any:
    """A copy with text keys and environment references, aliases followed. Raises ConfigError when huge."""
    count[0] += 1
    if count[0] > MOST_VALUES or depth > 32:
        raise ConfigError("", f"the file has more than {MOST_VALUES} values, or 32 levels")
    if isinstance(value, dict):
        return {_key(key): _bounded(item, count, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_bounded(item, count, depth + 1) for item in value]
    return _VARIABLE.sub(lambda match: reference(match[1]), value) if isinstance(value, str) else value


def _key(key: Any) -> str:
    return key if isinstance(key, str) else _plain(key)


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(path, "is not a mapping")
    return value


def _macros(value: Any, path: str) -> dict[str, str | int | float | bool]:
    macros = {}
    for name, item in _mapping(value, path).items():
        if not isinstance(item, str | int | float | bool):
            raise ConfigError(f"{path}.{name}", "is no text, number or truth value")
        macros[name] = item
    return macros


def _filled(value: Any, macros: Mapping[str, Any], path: str, unknown: dict[str, str]) -> Any:
    """A value with its macros replaced, those defined last first: they may name earlier ones."""
    if isinstance(value, dict):
        filled = {name: _filled(item, macros, f"{path}.{name}", unknown) for name, item in value.items()}
        return {str(_filled(name, macros, path, unknown)): item for name, item in filled.items()}
    if isinstance(value, list):
        return [_filled(item, macros, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    result = value
    for name, item in reversed(list(macros.items())):
        if result == f"${{{name}}}" and not isinstance(item, str):
            return item
        result = result.replace(f"${{{name}}}", _plain(item))
        if len(result) > LONGEST:
            raise ConfigError(path, f"is longer than {LONGEST} characters with its macros")
    for name in _MACRO.findall(result):
        if name not in _KEPT:
            unknown[path] = name
    return result


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
