"""The adapter of any server that speaks OpenAI's API: what is run is said by the profile's `program` and by
parameters.

`arguments` is a list of words, in which placeholders (`PLACEHOLDERS`) stand for what is known when an
instance starts. A list within it stands or falls as one: it is left out where one of its placeholders has no
value. `preset` names the parameters of a server that is known by name (`PRESETS`); what the model or its
profile says itself goes before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from modelyard.core.types import Address, Cause, Need, Placement, Share, Spec
from modelyard.core.units import parse_size
from modelyard.engines import openai_http
from modelyard.engines.adapter import Adapter
from modelyard.engines.base import Call, Command, Files, Listening, Profile
from modelyard.engines.command_presets import PRESETS, Preset
from modelyard.engines.openai_http import APIS
from modelyard.engines.options import Option, Table, one_of, some_of, text, texts, truth, whole

PLACEHOLDERS = {
    "address": "where it has to listen: host:port, or unix:PATH",
    "host": "the host of that",
    "port": "the port of that",
    "socket": "the path of its Unix socket",
    "model": "the model's name",
    "source": "the path of its file or folder",
    "slots": "the requests that it runs at once",
    "context": "the parameter `context`",
    "total_context": "`context` for all slots together",
    "devices": "the ids of its accelerators, with commas between them",
    "device_count": "how many accelerators it has",
}
_PLACEHOLDER = re.compile(r"\{\{[a-z_]+\}\}|\{([a-z_]+)\}")
_ACCELERATOR = re.compile(r"accelerator\d*")
# What logs say before an end, the most telling first.
_CAUSES = (
    ("out of memory", Cause.OUT_OF_MEMORY),
    ("OutOfMemoryError", Cause.OUT_OF_MEMORY),
    ("insufficient memory", Cause.OUT_OF_MEMORY),
    ("std::bad_alloc", Cause.OUT_OF_MEMORY),
    ("MemoryError", Cause.OUT_OF_MEMORY),
    ("ddress already in use", Cause.PORT_IN_USE),
    ("couldn't bind", Cause.PORT_IN_USE),
    ("No module named", Cause.NOT_INSTALLED),
    ("unrecognized arguments", Cause.BAD_ARGUMENTS),
    ("unexpected argument", Cause.BAD_ARGUMENTS),
    ("invalid argument", Cause.BAD_ARGUMENTS),
    ("failed to load model", Cause.BAD_MODEL),
)


def _arguments(value: object) -> str:
    fine = isinstance(value, list | tuple) and all(isinstance(word, str) or not texts(word) for word in value)
    if not fine:
        return "must be a list of texts, or of lists of texts"
    for word in _words(value):
        if unknown := [name for name in _named(word) if name not in PLACEHOLDERS]:
            as_text = f"write {{{{{unknown[0]}}}}} for the text itself"
            return f"names {{{unknown[0]}}}, and there are {', '.join(PLACEHOLDERS)}; {as_text}"
    return ""


def _health(value: object) -> str:
    fine = isinstance(value, str) and re.fullmatch(r"/[!-~]*", value)
    return "" if fine else "must be a path, e.g. /health"


def _memory(value: object) -> str:
    if not isinstance(value, Mapping) or not value:
        return "must map devices to sizes, e.g. {ram: 2GB, accelerator: 10GB}"
    try:
        sizes = [parse_size(size) for size in value.values()]
    except ValueError as error:
        return str(error)
    return "" if any(sizes) else "must be more than nothing"


_TABLE = Table(
    "command",
    (
        Option("preset", one_of(*PRESETS)),
        Option("arguments", _arguments),
        Option("extra_args", texts),
        Option("socket", truth),
        Option("health", _health),
        Option("memory", _memory),
        Option("context", whole(1)),
        Option("apis", some_of(*APIS)),
        Option("model_name", text),
    ),
)


class CommandEngine(Adapter):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "command"
    programs: ClassVar[tuple[str, ...]] = tuple(preset.program for preset in PRESETS.values())
    verified: ClassVar[Literal["real", "golden"]] = "real"
    trusted: ClassVar[frozenset[str]] = frozenset({"preset", "arguments", "extra_args"})
    presets: ClassVar[frozenset[str]] = frozenset(PRESETS)
    parallel: ClassVar[frozenset[str]] = frozenset({"tensor"})
    causes: ClassVar[tuple[tuple[str, Cause], ...]] = _CAUSES

    def missing(self, profile: Profile) -> str:
        preset = PRESETS.get(str(profile.defaults.get("preset")))
        if preset is None or profile.path(preset.program):
            return ""
        return f"cannot run its preset: there is no {preset.program} on PATH; {preset.get}"

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        found = _TABLE.problems(spec.parameters)
        if found:
            return found
        parameters = _parameters(spec)
        if "preset" not in parameters and not profile.program:
            message = (
                "has no program: make a profile of it under `engines:` with a `program`, or name a preset"
            )
            found.append(("engine", message))
        memory = parameters.get("memory")
        if spec.parallel.devices > 1 and isinstance(memory, Mapping) and {*memory} - {"accelerator", "ram"}:
            found.append(("parameters.memory", "takes accelerator and ram alone beside `parallel`"))
        preset = None if "arguments" in spec.parameters else _preset(spec)
        if spec.parallel.devices > 1 and preset is not None and not preset.parallel:
            message = "takes one accelerator by this preset: give a model that needs more its own `arguments`"
            found.append(("parallel", message))
        found += openai_http.warm_up_problems(spec, self.paths(spec))
        return found + _unlistening(parameters) + _unfilled(spec, parameters)

    def need(self, spec: Spec, files: Files) -> Need:
        declared = _parameters(spec).get("memory")
        if isinstance(declared, Mapping):
            sizes = {device: parse_size(size) for device, size in declared.items()}
        else:
            size = sum(file.size for file in files.values())
            sizes = {"ram" if spec.on_ram else "accelerator": size}
        shares: list[Share] = []
        for device, size in sizes.items():
            if _ACCELERATOR.fullmatch(device):
                parts = spec.parallel.devices
                shares += [Share("accelerator", size // parts)] * parts
            else:
                shares.append(Share(device, size))
        return Need(tuple(shares), known=bool(declared))

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command:
        parameters = _parameters(spec)
        devices = [charge.device for charge in placement if charge.device != "ram"]
        values = {
            **_known(spec, parameters),
            "address": str(address),
            "host": "" if address.path else address.host,
            "port": "" if address.path else str(address.port),
            "socket": address.path,
            "source": str(files["model"].path) if "model" in files else "",
            "devices": ",".join(devices),
            "device_count": str(len(devices)) if devices else "",
        }
        argv = [profile.program or profile.found[PRESETS[str(parameters["preset"])].program]]
        for part in _list(parameters, "arguments"):
            if isinstance(part, str):
                argv.append(_filled(part, values))
            elif all(values[name] for word in part for name in _named(word)):
                argv += [_filled(word, values) for word in part]
        preset = _preset(spec)
        own_folder = preset is not None and preset.own_folder
        return Command((*argv, *_list(parameters, "extra_args")), own_folder=own_folder)

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        return openai_http.warm_up(replace(spec, model=self.model_name(spec) or spec.model), self.paths(spec))

    def paths(self, spec: Spec) -> frozenset[str]:
        apis = _list(_parameters(spec), "apis") or ("chat", "completions")
        return frozenset(APIS[api] for api in apis)

    def listening(self, spec: Spec) -> Listening:
        parameters = _parameters(spec)
        return Listening(parameters.get("socket") is True, str(parameters.get("health", self.health)))

    def model_name(self, spec: Spec) -> str | None:
        name = _parameters(spec).get("model_name")
        return None if name is None else str(name)


def _preset(spec: Spec) -> Preset | None:
    return PRESETS.get(str(spec.parameters.get("preset")))


def _parameters(spec: Spec) -> Mapping[str, object]:
    """Those of the spec, above those of its preset."""
    preset = _preset(spec)
    return spec.parameters if preset is None else {**preset.parameters, **spec.parameters}


def _list(parameters: Mapping[str, object], name: str) -> Sequence[str]:
    given = parameters.get(name)
    return given if isinstance(given, list | tuple) else ()


def _words(parts: object) -> Iterator[str]:
    assert isinstance(parts, list | tuple)
    for part in parts:
        yield from [part] if isinstance(part, str) else part


def _named(word: str) -> list[str]:
    """The placeholders in a word."""
    return [match[1] for match in _PLACEHOLDER.finditer(word) if match[1]]


def _filled(word: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]] if match[1] else match[0][1:-1], word)


def _known(spec: Spec, parameters: Mapping[str, object]) -> dict[str, str]:
    """The values that the spec gives."""
    context = parameters.get("context")
    return {
        "model": spec.model,
        "slots": str(spec.slots),
        "context": str(context) if isinstance(context, int) else "",
        "total_context": str(context * spec.slots) if isinstance(context, int) else "",
        "source": spec.source,
    }


def _unlistening(parameters: Mapping[str, object]) -> list[tuple[str, str]]:
    """That the arguments do not say where to listen."""
    named = {name for word in _words(_list(parameters, "arguments")) for name in _named(word)}
    if named & {"address", "socket", "port"}:
        return []
    return [("parameters.arguments", "do not tell it where to listen: name {address}, {port} or {socket}")]


def _unfilled(spec: Spec, parameters: Mapping[str, object]) -> list[tuple[str, str]]:
    """The placeholders that have to have a value and have none."""
    values = _known(spec, parameters)
    missing = {"context": "parameters.context", "total_context": "parameters.context", "source": "source"}
    listening = ("socket",) if parameters.get("socket") is not True else ("host", "port")
    found = []
    for number, part in enumerate(_list(parameters, "arguments")):
        for name in _named(part) if isinstance(part, str) else ():
            if name in missing and not values[name]:
                message = f"names {{{name}}}, and the model has no `{missing[name]}`"
                found.append((f"parameters.arguments[{number}]", message))
            elif name in listening:
                other = "leave `socket` out" if name != "socket" else "say `socket: true`"
                message = f"names {{{name}}}, and it listens elsewhere: {other}"
                found.append((f"parameters.arguments[{number}]", message))
    return found
