"""Import of a llama-swap configuration: its llama-server commands become models.

Called by the command line. Every field of the file is taken over, noted or lost; none is passed over.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelyard.config.quantities import LONGEST
from modelyard.importing import llama_server, swap_text
from modelyard.importing.imported import Imported, absolute, filled, references

_SHORTEST_CHECK = 15  # seconds; llama-swap takes anything less for this
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CONTAINERS = frozenset({"docker", "podman", "nerdctl"})
_MASKS = ("_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_SECRETS = frozenset({"LLAMA_API_KEY", "LLAMA_ARG_API_KEY_FILE"})

_GENERAL = {
    "captureBuffer": "requests are not recorded with their texts",
    "includeAliasesInList": "aliases are not listed as models of their own",
    "logLevel": "the log has one level",
    "logRequests": "requests are in the journal (`modelyard explain`)",
    "logTimeFormat": "the log has one format",
    "logToStdout": "engines' output is kept apart (`modelyard logs`)",
    "matrix": "which models are in memory together follows from their sizes",
    "metricsMaxInMemory": "metrics are for Prometheus, at /metrics",
    "peers": "other servers are no engine yet",
    "performance": "metrics are for Prometheus, at /metrics",
    "profiles": "models have fixed aliases",
    "selectors": "a name means one model",
    "sendLoadingState": "streams get comments while a model loads",
    "startPort": "engines are reached through sockets that Modelyard names",
    "store": "the journal is in the data folder (`journal:` bounds it)",
    "ui": "the page at / has no such settings",
    "unloadTimeout": "an engine has 5 s to end, then it is killed",
    "upstream": "engines are not reached past Modelyard",
}
"""Settings of the whole server that have no counterpart, with what there is instead."""
_OF_A_MODEL = {
    "cmdStop": "an engine is asked to end with SIGTERM, after 5 s with SIGKILL",
    "compat": "there are no websockets",
    "concurrencyLimit": "`slots` and `queue_bound` say how many run and wait",
    "description": "the list of models has none",
    "metadata": "the list of models has none",
    "name": "the list of models has none",
    "sendLoadingState": "streams get comments while a model loads",
    "unlisted": "all models are listed",
    "unloadTimeout": "an engine has 5 s to end, then it is killed",
    "useModelName": "an engine is started with the name that clients use",
}


def read(path: Path, environ: Mapping[str, str], *, elsewhere: bool = False) -> Imported:
    """What a llama-swap configuration says. With `elsewhere`, programs are taken to be where it runs, and are
    not looked for here. Raises ConfigError when the file cannot be read as one."""
    path = Path(os.path.abspath(path))
    return _Swap(path, swap_text.read(path), environ, elsewhere).imported()


@dataclass(slots=True)
class _Command:
    """A model's command: its program, arguments and environment."""

    program: str
    arguments: list[str]
    environment: dict[str, str]


class _Swap:
    """One pass over the sections."""

    def __init__(
        self, path: Path, text: swap_text.SwapText, environ: Mapping[str, str], elsewhere: bool
    ) -> None:
        self._base = path.parent
        self._text = text
        self._environ = environ
        self._elsewhere = elsewhere
        self._names: dict[str, str] = {}  # by the name there (of a model or an alias): the model's name here
        self._result = Imported(str(path), found=len(text.models))

    def imported(self) -> Imported:
        result = self._result
        self._defaults()
        for model in self._text.models:
            name = result.name_for(model)
            if name in self._names.values() or not name:
                result.lose(f"models.{model}", "this model is left out: no name can be made of its own")
                continue
            self._names[model] = name
        for model, name in self._names.copy().items():
            self._model(model, name, self._text.models[model])
        general = self._text.general
        self._routing()
        self._hooks(general.pop("hooks", None))
        self._keys(general.pop("apiKeys", None))
        for key in (key for key, value in general.items() if value):
            result.lose(key, _GENERAL.get(key, "is no setting that is known here"))
        for path, macro in self._text.unknown.items():
            if not path.endswith(".cmd"):  # there it has cost the model already
                result.lose(path, f"names the macro {macro}, which is not defined")
        return result

    def _defaults(self) -> None:
        general, defaults = self._text.general, self._result.defaults
        seconds = self._whole("globalTTL", general.pop("globalTTL", 0), 0)
        defaults["keep_alive"] = _stay(seconds)
        if "healthCheckTimeout" in general:
            given = self._whole("healthCheckTimeout", general.pop("healthCheckTimeout"), 120)
            defaults["load_cap"] = min(max(given, _SHORTEST_CHECK), int(LONGEST))

    def _whole(self, path: str, value: Any, default: int, model: str = "") -> int:
        """A number of seconds, at least 0."""
        text = filled(value, self._environ) if isinstance(value, str) else str(value)
        if re.fullmatch("[0-9]{1,9}", text):
            return int(text)
        self._result.lose(path, "is no whole number, 0 or more", model)
        return default

    # -- models --------------------------------------------------------------------------------------------

    def _model(self, model: str, name: str, given: dict[str, Any]) -> None:
        path, result = f"models.{model}", self._result
        try:
            command = self._command(path, given)
            server = llama_server.read(command.arguments, self._base, self._environ)
            self._check_proxy(path, name, given.pop("proxy", None), server.port)
        except ValueError as error:
            result.leave_out(name, f"{path}.cmd", str(error))
            return
        if name != model:
            result.note(path, "its name has signs that a name cannot have here", name)
        section: dict[str, Any] = {"source": server.section.pop("source"), "engine": ""}
        section |= server.section
        for message, lost in server.remarks:
            (result.lose if lost else result.note)(f"{path}.cmd", message, name)
        self._program(path, name, section, command, server.extra)
        result.models[name] = section
        self._fields(path, name, section, given)

    def _command(self, path: str, given: dict[str, Any]) -> _Command:
        """The command of a model, and its environment. Raises ValueError with why there can be no engine."""
        written = given.pop("cmd", None)
        if not isinstance(written, str):
            raise ValueError("there is no command")
        if f"{path}.cmd" in self._text.unknown:
            raise ValueError(f"it names the macro {self._text.unknown[f'{path}.cmd']}, which is not defined")
        try:
            words = _words(written)
        except ValueError:
            raise ValueError("its quotes do not match") from None
        pairs = [item.partition("=") for item in _texts(given.pop("env", None))]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("its `env` is no list of NAME=value")
        environment = {variable: value for variable, _, value in pairs}
        if words and Path(words[0]).name == "env":
            del words[0]
            while words and re.match(r"[A-Za-z_][A-Za-z0-9_]*=", words[0]):
                variable, _, value = words.pop(0).partition("=")
                environment[variable] = value
        if not words:
            raise ValueError("there is no command")
        program, *arguments = words
        if Path(program).name in _CONTAINERS:
            raise ValueError(
                f"it runs in a container ({Path(program).name}); only llama-server itself is supported"
            )
        if not llama_server.is_llama_server(filled(program, self._environ)):
            raise ValueError(f"it runs {Path(program).name}; only llama-server is supported")
        environment, implied = llama_server.without_arguments(environment)
        return _Command(program, [*implied, *arguments], environment)

    def _program(
        self, path: str, name: str, section: dict[str, Any], command: _Command, extra: list[str]
    ) -> None:
        """The engine profile, and the arguments that only llama-server itself understands."""
        result, program = self._result, command.program
        if "/" in program:
            program = absolute(program, self._base, self._environ)
        if not self._elsewhere and not self._is_here(program):
            result.note(
                f"{path}.cmd", f"{Path(program).name} is not here: the wheel `xllamacpp` runs it", name
            )
            if extra:
                result.lose(f"{path}.cmd", f"needs llama-server itself: {shlex.join(extra)}", name)
            program, extra = "", []
        environment = {}
        for variable, value in command.environment.items():
            if variable.endswith(_MASKS):
                message = (
                    f"{variable}: name the devices of a model by UUID under `devices` (`modelyard devices`)"
                )
                result.lose(f"{path}.env", message, name)
            elif variable in _SECRETS:
                result.lose(
                    f"{path}.env", f"{variable}: engines are not reached by clients; use `keys:`", name
                )
            else:
                environment[variable] = value
        section["engine"] = result.profile(program, environment)
        if extra:
            section.setdefault("parameters", {})["extra_args"] = extra

    def _is_here(self, program: str) -> bool:
        return shutil.which(filled(program, self._environ), path=self._environ.get("PATH")) is not None

    def _check_proxy(self, path: str, name: str, proxy: Any, port: str) -> None:
        """Raises ValueError when the model is served by something else than what the command starts."""
        if not isinstance(proxy, str):
            return
        address = urlsplit(filled(proxy, self._environ).replace("${PORT}", "0"))
        if address.hostname not in _LOOPBACK or address.path.strip("/"):
            raise ValueError("its requests go to another server (`proxy`)")
        if port and not proxy.rstrip("/").endswith(f":{port}"):
            message = "requests went to another port than the command's; here they go to llama-server itself"
            self._result.lose(f"{path}.proxy", message, name)

    def _fields(self, path: str, name: str, section: dict[str, Any], given: dict[str, Any]) -> None:
        result = self._result
        ttl = given.pop("ttl", -1)
        if ttl != -1:
            section["keep_alive"] = _stay(self._whole(f"{path}.ttl", ttl, 0, name))
        check = given.pop("checkEndpoint", "/health")
        if check not in ("/health", "none"):
            result.lose(f"{path}.checkEndpoint", "llama-server is asked at /health", name)
        self._aliases(path, name, section, given.pop("aliases", None))
        self._filters(path, name, given.pop("filters", None))
        for field, value in self._section(f"{path}.timeouts", given.pop("timeouts", None)).items():
            seconds = self._whole(f"{path}.timeouts.{field}", value, 0, name)
            if field == "responseHeader" and seconds:
                section["first_byte_timeout"] = min(seconds, int(LONGEST))
            elif field != "responseHeader":
                result.lose(f"{path}.timeouts.{field}", "there is no such timeout to an engine here", name)
        self._capabilities(path, name, section, given.pop("capabilities", None))
        for field in (field for field, value in given.items() if value):
            result.lose(f"{path}.{field}", _OF_A_MODEL.get(field, "is no setting that is known here"), name)

    def _aliases(self, path: str, name: str, section: dict[str, Any], aliases: Any) -> None:
        taken = []
        for index, alias in enumerate(_texts(aliases)):
            if alias in self._names or self._result.name_for(alias) != alias:
                message = "is the name of another model, or no name that is possible here"
                self._result.lose(f"{path}.aliases[{index}]", message, name)
                continue
            self._names[alias] = name
            taken.append(alias)
        if taken:
            section["aliases"] = taken

    def _filters(self, path: str, name: str, filters: Any) -> None:
        for field, value in self._section(f"{path}.filters", filters).items():
            message = "requests are passed on as they come"
            if field == "setParamsByID" and isinstance(value, dict):
                message += f"; no names are made for {', '.join(value)}"
            self._result.lose(f"{path}.filters.{field}", message, name)

    def _capabilities(self, path: str, name: str, section: dict[str, Any], given: Any) -> None:
        known = {
            ("in", "text"): "",
            ("in", "image"): "vision",
            ("out", "text"): "",
            ("tools", "True"): "tools",
        }
        known[("reranker", "True")] = ""  # what an engine serves is told without being said
        for field, values in self._section(f"{path}.capabilities", given).items():
            for value in _texts(values) or ([str(values)] if values else []):
                if (field, value) not in known:
                    message = f"{value} is not told to clients"
                    self._result.lose(f"{path}.capabilities.{field}", message, name)
                elif known[field, value]:
                    section.setdefault("capabilities", []).append(known[field, value])

    # -- the whole server ----------------------------------------------------------------------------------

    def _section(self, path: str, value: Any) -> dict[str, Any]:
        """A mapping; empty when there is none, which is told when there is something else."""
        if value is not None and not isinstance(value, dict):
            self._result.lose(path, "is not a mapping")
        return value if isinstance(value, dict) else {}

    def _rest(self, path: str, section: Mapping[str, Any]) -> None:
        """What nobody took of a section."""
        for key in (key for key, value in section.items() if value):
            self._result.lose(f"{path}.{key}", "is no setting that is known here")

    def _routing(self) -> None:
        """Who may be in memory together, and who comes first."""
        routing = self._section("routing", self._text.general.pop("routing", None))
        router = self._section("routing.router", routing.pop("router", None))
        scheduler = self._section("routing.scheduler", routing.pop("scheduler", None))
        path = "routing.router.settings"
        settings = self._section(path, router.pop("settings", None))
        for group, given in self._section("groups", self._text.general.pop("groups", None)).items():
            self._group(f"groups.{group}", self._section(f"groups.{group}", given))
        for group, given in self._section(f"{path}.groups", settings.pop("groups", None)).items():
            self._group(f"{path}.groups.{group}", self._section(f"{path}.groups.{group}", given))
        if settings.pop("matrix", None):
            self._result.lose(f"{path}.matrix", _GENERAL["matrix"])
        fifo = self._section("routing.scheduler.settings", scheduler.pop("settings", None)).get("fifo")
        self._priorities(self._section("routing.scheduler.settings.fifo", fifo).get("priority"))
        router.pop("use", None)
        scheduler.pop("use", None)
        for name, section in (("routing", routing), ("routing.router", router), (path, settings)):
            self._rest(name, section)

    def _group(self, path: str, given: dict[str, Any]) -> None:
        """Memory decides here who may stay, so only what has to stay is taken over."""
        result, persistent, swap = self._result, given.get("persistent"), given.get("swap", True)
        if persistent and swap:
            result.lose(f"{path}.persistent", "models that swap among themselves cannot be kept from others")
        elif persistent:
            for index, member in enumerate(_texts(given.get("members"))):
                name = self._names.get(member, "")
                if name in result.models:
                    result.models[name]["pin"] = True
                    message = "persistent: it is pinned, so all pinned models have to fit together"
                    result.note(path, message, name)
                else:
                    result.lose(f"{path}.members[{index}]", "its model is not here")
        if swap or given.get("exclusive", True):
            result.note(
                path, "who is in memory together follows from sizes; nobody leaves while there is room"
            )

    def _hooks(self, hooks: Any) -> None:
        known = self._section("hooks", hooks)
        startup = self._section("hooks.on_startup", known.pop("on_startup", None))
        for index, model in enumerate(_texts(startup.pop("preload", None))):
            name = self._names.get(model.strip(), "")
            if name in self._result.models:
                self._result.preload.append(name)
            else:
                self._result.lose(f"hooks.on_startup.preload[{index}]", "its model is not here")
        self._rest("hooks", known)
        self._rest("hooks.on_startup", startup)

    def _keys(self, keys: Any) -> None:
        """Secrets are not written: a digest does, or the variable that holds one."""
        seen = set()
        for index, secret in enumerate(_texts(keys)):
            value = filled(secret, {**dict.fromkeys(references(secret), f"x{index}"), **self._environ})
            if not re.fullmatch(r"[\x21-\x7e]{1,512}", value) or value in seen:
                self._result.lose(f"apiKeys[{index}]", "is there already, or is no key that is possible here")
                continue
            seen.add(value)
            key: dict[str, Any] = {"name": f"key-{index + 1}"}
            if references(secret):
                key["key"] = secret
            else:
                key["hash"] = sha256(secret.encode()).hexdigest()
            self._result.keys.append(key | {"scopes": ["inference"]})
        if self._result.keys:
            self._result.note(
                "apiKeys", "they open the models' APIs; add a key with the scope admin for the rest"
            )

    def _priorities(self, given: Any) -> None:
        path, above = "routing.scheduler.settings.fifo.priority", set()
        for model, value in self._section(path, given).items():
            name = self._names.get(model, "")
            if name not in self._result.models or not re.fullmatch("-?[0-9]{1,9}", str(value)):
                self._result.lose(f"{path}.{model}", "is no number, or its model is not here")
            elif number := int(value):
                self._result.models[name]["priority"] = "high" if number > 0 else "low"
                above |= {number} if number > 0 else set()
        if len(above) > 1:
            self._result.note(path, "every priority above 0 is `high`: there are three classes")


def _words(command: str) -> list[str]:
    """The words of a command: lines may end in a backslash, or begin with # for a comment."""
    lines = swap_text.without_comments(command).split("\n")
    joined = [f"{line.rstrip()[:-1]} " if line.rstrip().endswith("\\") else line for line in lines]
    return shlex.split("\n".join(joined))


def _stay(seconds: int) -> int | str:
    """How long an idle model stays; 0 says for ever there, and so do those who say decades."""
    return seconds if 0 < seconds <= LONGEST else "forever"


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item if isinstance(item, str) else str(item) for item in value] if isinstance(value, list) else []
