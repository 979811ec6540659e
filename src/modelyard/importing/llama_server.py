"""A command line of llama-server as a model of the configuration.

Used by `llama_swap` alone. What is a parameter becomes one, what Modelyard says itself is noted, what would
break the way it talks to an engine is lost, and every other argument is kept as it is for `extra_args`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.engines import llamacpp_options
from modelyard.engines.llamacpp_memory import DEFAULT_CONTEXT
from modelyard.importing.hub_repos import file_of
from modelyard.importing.imported import absolute, filled

ALL_LAYERS = 99
"""As many layers are said by those who mean all: what Modelyard does by itself, where there is a GPU."""

_PORT = "${PORT}"
_NUMBER = re.compile(r"-?[0-9.]+")
Read = Callable[[str], object]


def _parts(text: str) -> list[float]:
    return [int(part) if part.isdigit() else float(part) for part in re.split("[,/]", text)]


def _layers(text: str) -> object:
    if text in {"auto", "all"} or int(text) < 0 or int(text) >= ALL_LAYERS:
        return None
    return int(text)


_VALUES: dict[str, tuple[str, Read]] = {
    flag: (parameter, read)
    for flags, parameter, read in (
        ("-ctk --cache-type-k", "kv.k", str),
        ("-ctv --cache-type-v", "kv.v", str),
        ("-t --threads", "threads", int),
        ("-tb --threads-batch", "threads_batch", int),
        ("-ngl --gpu-layers --n-gpu-layers", "gpu_layers", _layers),
        ("-ts --tensor-split", "tensor_split", _parts),
        ("-sm --split-mode", "split_mode", str),
        ("-mg --main-gpu", "main_gpu", int),
        ("-b --batch-size", "batch", int),
        ("-ub --ubatch-size", "ubatch", int),
        ("-lm --load-mode", "mmap", {"mmap": True, "none": False}.__getitem__),
        ("-cram --cache-ram", "cache_ram_mib", int),
        ("-ctxcp --ctx-checkpoints --swa-checkpoints", "context_checkpoints", int),
        ("--reasoning-format", "reasoning.format", str),
        ("--reasoning-budget", "reasoning.budget", int),
        ("--pooling", "pooling", str),
        ("--draft --draft-n --draft-max --spec-draft-n-max", "draft.max", int),
        ("--draft-min --draft-n-min --spec-draft-n-min", "draft.min", int),
        ("--draft-p-min --spec-draft-p-min", "draft.p_min", float),
        ("-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl", "draft.gpu_layers", int),
    )
    for flag in flags.split()
}
_FILES = {
    flag: parameter
    for flags, parameter in (
        ("-md --model-draft --spec-draft-model", "draft.source"),
        ("-mm --mmproj", "mmproj"),
        ("--chat-template-file", "chat_template.file"),
    )
    for flag in flags.split()
}
_SET: dict[str, tuple[str, object]] = {
    "--embedding": ("embedding", True),
    "--embeddings": ("embedding", True),
    "--rerank": ("rerank", True),
    "--reranking": ("rerank", True),
    "--mmap": ("mmap", True),
    "--no-mmap": ("mmap", False),
}
_OURS = {
    flag: values
    for flags, values in (
        ("--port --host -a --alias -fit --fit -fitt --fit-target -fitc --fit-ctx", 1),
        ("-to --timeout --log-file", 1),
        ("--metrics --slots --no-slots --jinja -cb --cont-batching --props --log-disable --reuse-port", 0),
        ("--ui --webui --no-ui --no-webui -kvu --kv-unified -no-kvu --no-kv-unified", 0),
    )
    for flag in flags.split()
}
"""What Modelyard says itself, with the number of values."""
_REFUSED = {
    flag: why
    for flags, why in (
        ("--api-key --api-key-file", "engines are not reached by clients; give `keys:` of your own"),
        ("--ssl-key-file --ssl-cert-file", "engines are reached on this machine alone, without TLS"),
        ("--api-prefix --path", "engines are asked at their usual paths"),
        ("-hft --hf-token", "the server takes HF_TOKEN from its environment"),
        ("-dev --device", "name the devices of a model by UUID under `devices` (`modelyard devices`)"),
        ("-mu --model-url -mmu --mmproj-url", "files come from paths, hf:// or pypi://"),
        ("-dr --docker-repo", "files come from paths, hf:// or pypi://"),
        ("-hfd -hfrd --hf-repo-draft --spec-draft-hf", "name the file under `parameters.draft.source`"),
        ("--models-dir --models-preset --models-max", "every model is one of its own here"),
    )
    for flag in flags.split()
}
_PAIRS = frozenset({"--control-vector-scaled", "--control-vector-layer-range"})
"""What has two values; all other flags have one or none."""
_VARIABLES = {
    "LLAMA_ARG_MODEL": "-m",
    "LLAMA_ARG_HF_REPO": "-hf",
    "LLAMA_ARG_HF_FILE": "-hff",
    "LLAMA_ARG_CTX_SIZE": "-c",
    "LLAMA_ARG_N_PARALLEL": "-np",
    "LLAMA_ARG_N_GPU_LAYERS": "-ngl",
    "LLAMA_ARG_FLASH_ATTN": "-fa",
    "LLAMA_ARG_CACHE_TYPE_K": "-ctk",
    "LLAMA_ARG_CACHE_TYPE_V": "-ctv",
    "LLAMA_ARG_THREADS": "-t",
    "LLAMA_ARG_MMPROJ": "-mm",
}


def is_llama_server(program: str) -> bool:
    """Whether a program's name says that it is llama.cpp's server."""
    return Path(program).name.removesuffix(".exe").startswith("llama-server")


def without_arguments(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """An environment without the variables that stand for arguments which Modelyard also gives; and those
    arguments, which come before the others of the command."""
    left = {name: value for name, value in environment.items() if name not in _VARIABLES}
    flags = [
        item
        for name, value in environment.items()
        if name in _VARIABLES
        for item in (_VARIABLES[name], value)
    ]
    return left, flags


@dataclass(slots=True)
class ServerModel:
    """What a command line says. `section` has the fields of a model but `engine`; `remarks` are texts, and
    whether something is lost. `port` is where it was to listen."""

    section: dict[str, Any] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    remarks: list[tuple[str, bool]] = field(default_factory=list)
    port: str = ""


def read(arguments: Sequence[str], base: Path, environ: Mapping[str, str]) -> ServerModel:
    """The model of a command line, its program left out. `base` is where relative file names begin. Raises
    ValueError with the reason when there can be no model of it."""
    return _Pass(arguments, base, environ).model()


class _Pass:
    """One pass over the arguments. A later one wins over an earlier one of the same meaning."""

    def __init__(self, arguments: Sequence[str], base: Path, environ: Mapping[str, str]) -> None:
        self._left = list(reversed(arguments))
        self._base = base
        self._environ = environ
        self._model = ServerModel()
        self._parameters: dict[str, object] = {}
        self._written: dict[str, list[str]] = {}  # by parameter: the arguments that it was made from
        self._lora: list[dict[str, object]] = []
        self._numbers: dict[str, int] = {}
        self._source = self._repo = self._repo_file = ""

    def model(self) -> ServerModel:
        while self._left:
            flag = self._left.pop()
            if flag.startswith("--"):
                flag = flag.replace("_", "-")
            self._take(flag)
        self._demote()
        model = self._model
        model.section["source"] = self._found_source()
        slots, context = self._room()
        model.section["slots"] = slots
        if context is not None:
            self._parameters = {"context": context, **self._parameters}
        if self._lora:
            self._parameters["lora"] = self._lora
        if self._parameters:
            model.section["parameters"] = _nested(self._parameters)
        return model

    def _take(self, flag: str) -> None:
        special = _SPECIAL.get(flag)
        if special is not None:
            special(self, flag)
        elif flag in _VALUES:
            parameter, read = _VALUES[flag]
            self._put(parameter, flag, self._value(flag), read)
        elif flag in _FILES:
            value = self._value(flag)
            self._put(_FILES[flag], flag, value, lambda text: absolute(text, self._base, self._environ))
        elif flag in _SET:
            parameter, fixed = _SET[flag]
            self._parameters[parameter], self._written[parameter] = fixed, [flag]
        elif flag in _OURS:
            value = self._value(flag) if _OURS[flag] else ""
            if flag == "--port":
                self._model.port = value
            elif flag not in {"--host", "--jinja", "--metrics", "--slots"}:
                self._model.remarks.append((f"{flag}: Modelyard decides this itself", False))
        elif flag in _REFUSED:
            self._value(flag)
            self._model.remarks.append((f"{flag}: {_REFUSED[flag]}", True))
        elif not flag.startswith("-") or _NUMBER.fullmatch(flag):
            words = " ".join(word or "''" for word in [flag, *self._values()])
            self._model.remarks.append((f"{words}: belongs to no flag", True))
        else:
            self._keep(flag)

    def _value(self, flag: str) -> str:
        if not self._left:
            raise ValueError(f"{flag} has no value")
        return self._left.pop()

    def _values(self, most: int | None = None) -> list[str]:
        """What follows, up to the next flag, which a negative number is not; `most` of it, no comment."""
        values: list[str] = []
        while self._left and (not self._left[-1].startswith("-") or _NUMBER.fullmatch(self._left[-1])):
            if most is not None and (len(values) == most or self._left[-1] == "#"):
                break
            values.append(self._left.pop())
        return values

    def _keep(self, flag: str) -> None:
        written = [flag, *self._values(2 if flag in _PAIRS else 1)]
        if any(_PORT in word for word in written):
            self._model.remarks.append((f"{flag}: the port is chosen when the model is started", True))
            return
        # The loader would take `./x` for a file beside the configuration.
        self._model.extra += [
            absolute(word, self._base, self._environ) if word.startswith(("./", "../")) else word
            for word in written
        ]

    def _put(self, parameter: str, flag: str, value: str, read: Read) -> None:
        self._written[parameter] = [flag, value]
        keep_references = read is str or flag in _FILES
        try:
            self._parameters[parameter] = read(value if keep_references else filled(value, self._environ))
        except (ValueError, KeyError):
            self._parameters[parameter] = value  # no value of the parameter: it is demoted
        if self._parameters[parameter] is None:
            del self._parameters[parameter]

    def _demote(self) -> None:
        """Parameters whose value only llama-server can judge become arguments again."""
        if self._parameters.get("rerank"):
            self._parameters.pop("embedding", None)  # reranking says both
        for name, value in list(self._parameters.items()):
            alone = name.startswith("draft.") and "draft.source" not in self._parameters
            if alone or llamacpp_options.problems(_nested({name: value})):
                del self._parameters[name]
                self._model.extra += self._written[name]

    # -- what takes more than a row of a table -------------------------------------------------------------

    def _file(self, flag: str) -> None:
        self._source = absolute(self._value(flag), self._base, self._environ)

    def _hub(self, flag: str) -> None:
        value = self._value(flag)
        if flag in {"-hff", "--hf-file"}:
            self._repo_file = value
        else:
            self._repo = value

    def _count(self, flag: str) -> None:
        text = filled(self._value(flag), self._environ)
        if not _NUMBER.fullmatch(text) or "." in text:
            raise ValueError(f"{flag} is no whole number")
        kind = {"-c": "context", "--ctx-size": "context", "--kv-unified-per-slot": "per slot"}
        self._numbers[kind.get(flag, "slots")] = int(text)

    def _flash(self, flag: str) -> None:
        words = {
            "on": "on",
            "off": "off",
            "auto": "auto",
            "1": "on",
            "0": "off",
            "true": "on",
            "false": "off",
        }
        word = words.get(self._left[-1]) if self._left else None
        if word is not None:
            self._left.pop()
        self._parameters["flash_attention"] = word or "on"
        self._written["flash_attention"] = [flag]

    def _adapters(self, flag: str) -> None:
        scaled = flag == "--lora-scaled"
        for text in self._value(flag).split(","):
            name, _, scale = text.rpartition(":") if scaled and ":" in text else (text, "", "")
            if scaled and not scale and self._left and _NUMBER.fullmatch(self._left[-1]):
                scale = self._left.pop()  # as older ones took it
            adapter: dict[str, object] = {"source": absolute(name, self._base, self._environ)}
            self._lora.append(adapter | ({"scale": float(scale)} if scale else {}))

    def _template(self, flag: str) -> None:
        value = self._value(flag)
        kind = "chat_template.inline" if "{" in value or "\n" in value else "chat_template.name"
        self._put(kind, flag, value, str)

    def _speculation(self, flag: str) -> None:
        value = self._value(flag)
        if value.startswith("ngram-"):
            self._put("ngram", flag, value.removeprefix("ngram-"), str)
            self._written["ngram"] = [flag, value]
        elif value != "draft-simple":  # that one goes with a draft model
            self._model.extra += [flag, value]

    def _found_source(self) -> str:
        if self._source:
            return self._source
        if not self._repo:
            raise ValueError("its command names no model file")
        repo, _, tag = self._repo.partition(":")
        if self._repo_file:
            return f"hf://{repo}/{self._repo_file}"
        source = file_of(repo, tag, self._environ)
        if source is None:
            raise ValueError(
                f"which file of {repo} it means is not known here; add `--hf-file FILE.gguf` to its command"
            )
        self._model.remarks.append((f"-hf: it means {source}, as far as the caches here tell", False))
        return source

    def _room(self) -> tuple[int, int | None]:
        """Slots, and the context of each. llama-server divides one context among its slots."""
        numbers = self._numbers
        slots = max(1, numbers.get("slots", 1))
        if "per slot" in numbers:
            return slots, numbers["per slot"]
        if "context" not in numbers:
            message = f"no --ctx-size: up to {DEFAULT_CONTEXT} tokens here; say `context: 0` for all it can"
            self._model.remarks.append((message, False))
            return slots, None
        context = max(0, numbers["context"])
        if slots > 1 and context:
            message = f"--ctx-size {context}: {slots} slots of {context // slots} tokens each"
            self._model.remarks.append((message, False))
        return slots, context // slots


_SPECIAL: dict[str, Callable[[_Pass, str], None]] = {
    flag: take
    for flags, take in (
        ("-m --model", _Pass._file),
        ("-hf -hfr --hf-repo -hff --hf-file", _Pass._hub),
        ("-c --ctx-size -np --parallel --kv-unified-per-slot", _Pass._count),
        ("-fa --flash-attn", _Pass._flash),
        ("--lora --lora-scaled", _Pass._adapters),
        ("--chat-template", _Pass._template),
        ("--spec-type", _Pass._speculation),
    )
    for flag in flags.split()
}


def _nested(parameters: Mapping[str, object]) -> dict[str, object]:
    """Dotted names as mappings."""
    nested: dict[str, Any] = {}
    for name, value in parameters.items():
        group, _, inner = name.partition(".")
        if inner:
            nested.setdefault(group, {})[inner] = value
        else:
            nested[name] = value
    return nested
