"""The adapter of Ollama: a server of our own for each instance, or a model inside one that runs already.

One of our own (`servers.ollama`) has the version's files and nothing else, and keeps its model in memory
until it is stopped: nobody but us decides when. Its chat template is the one that Ollama takes from the file,
or `template`.

With `url`, an instance is a model in the memory of a server that runs already. It is loaded and unloaded by
its API, and stays as its people made it: `model` is its name there. What it takes is known from the server
itself, and counts where that is this machine.

It takes models in a single file of the GGUF format.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from modelyard.core.types import Address, Cause, Need, Placement, Share, Spec
from modelyard.engines import llamacpp_memory, openai_http
from modelyard.engines.adapter import Adapter
from modelyard.engines.base import Attach, Call, Command, Exit, Files, Held, Profile
from modelyard.engines.llamacpp_memory import DEFAULT_CONTEXT, Model, Plan
from modelyard.engines.openai_http import CHAT, post
from modelyard.engines.options import Option, Table, one_of, text, truth, url, whole
from modelyard.errors import BadGguf

PROGRAM = "ollama"
SERVER = 25_000_000
"""What `ollama serve` takes beside the process that runs the model."""
_ALL_LAYERS = 999
_BATCH = 512
_KV_TYPES = ("f16", "q8_0", "q4_0")
_EMBEDDINGS = "/v1/embeddings"
_TEXT_PATHS = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages", _EMBEDDINGS)
_NAME = re.compile(r"(?:\w[\w-]{0,79}/)?\w[\w.-]{0,79}(?::\w[\w.-]{0,79})?", re.ASCII)
_OTHER_NAME = "model"
_LOADED_WITH = {"threads": "num_thread", "batch": "num_batch", "mmap": "use_mmap"}
_OURS = frozenset({"num_ctx", "num_gpu", *_LOADED_WITH.values()})

# What it says before the end, the most telling first.
_CAUSES = (
    ("requires more system memory", Cause.OUT_OF_MEMORY),
    ("unable to load full model on GPU", Cause.OUT_OF_MEMORY),
    ("failed to allocate", Cause.OUT_OF_MEMORY),
    ("unable to allocate", Cause.OUT_OF_MEMORY),
    ("out of memory", Cause.OUT_OF_MEMORY),
    ("cudaMalloc failed", Cause.OUT_OF_MEMORY),
    ("signal: killed", Cause.OUT_OF_MEMORY),
    ("address already in use", Cause.PORT_IN_USE),
    ("cannot be executed", Cause.NOT_INSTALLED),
    ("unable to load model", Cause.BAD_MODEL),
    ("this model is not supported", Cause.BAD_MODEL),
)


def _settings(value: object) -> str:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return "must be a mapping of a Modelfile's parameters, e.g. {temperature: 0.2}"
    if ours := sorted(_OURS & value.keys()):
        return f"has {', '.join(ours)}: see context, threads, batch, gpu_layers and mmap beside it"
    return ""


def _lora(value: object) -> str:
    fine = (
        isinstance(value, list | tuple)
        and len(value) == 1
        and isinstance(value[0], Mapping)
        and value[0].keys() == {"source"}
        and not text(value[0]["source"])
    )
    return "" if fine else "must be a list of one {source}: Ollama takes one adapter, as it is"


_OWN = Table(
    "ollama",
    (
        Option("context", whole(0)),
        Option("kv", one_of(*_KV_TYPES)),
        Option("flash_attention", one_of("auto", "on", "off")),
        Option("threads", whole(1)),
        Option("batch", whole(1)),
        Option("gpu_layers", whole(0)),
        Option("mmap", truth),
        Option("lora", _lora),
        Option("mmproj", text),
        Option("embedding", truth),
        Option("template", text),
        Option("system", text),
        Option("settings", _settings),
    ),
)


_ATTACHED = Table(
    "an ollama that runs already",
    (
        Option("url", url("http://127.0.0.1:11434")),
        Option("model", text),
        Option("context", whole(1)),
        Option("embedding", truth),
    ),
)


class OllamaEngine(Adapter):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "ollama"
    programs: ClassVar[tuple[str, ...]] = (PROGRAM,)
    verified: ClassVar[Literal["real", "golden"]] = "real"
    health: ClassVar[str] = "/api/version"
    trusted: ClassVar[frozenset[str]] = frozenset({"url"})  # where requests go
    folders: ClassVar[bool] = False
    parallel: ClassVar[frozenset[str]] = frozenset({"pipeline"})
    causes: ClassVar[tuple[tuple[str, Cause], ...]] = _CAUSES
    spec_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"batching.max_tokens": ("batch",)}

    def missing(self, profile: Profile) -> str:
        if profile.path(PROGRAM) or "url" in profile.defaults:
            return ""
        return (
            f"is not installed: there is no program {PROGRAM} on PATH; install it from "
            "https://ollama.com/download, or name one that lies elsewhere as `program` of an engine profile"
        )

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        attached = "url" in spec.parameters
        found = (_ATTACHED if attached else _OWN).problems(spec.parameters)
        if attached and spec.source:
            found.append(("source", "is of no use: the server has the model already"))
        if not attached and not spec.source:
            found.append(("source", "is missing: name a GGUF file"))
        if spec.parameters.get("kv", "f16") != "f16" and _flash(spec.parameters) == "off":
            found.append(("parameters.kv", "needs flash attention: leave out `flash_attention: off`"))
        return found + openai_http.warm_up_problems(spec, self.paths(spec))

    def sources(self, spec: Spec) -> Mapping[str, str]:
        found = {"model": spec.source} if spec.source else {}
        if spec.parameters.get("mmproj"):
            found["mmproj"] = str(spec.parameters["mmproj"])
        lora = spec.parameters.get("lora", ())
        if not _lora(lora) and isinstance(lora, list | tuple):
            found["lora"] = str(lora[0]["source"])
        return found

    def need(self, spec: Spec, files: Files) -> Need:
        if "url" in spec.parameters:
            places = _places(spec)
            return Need(tuple(Share(place, 0) for place in places or ("ram",)), known=not places)
        for file in files.values():
            if not file.header:
                raise BadGguf(
                    f"{file.path} is not a GGUF file; name one that is, or convert the model to GGUF"
                )
            if len(file.paths) > 1:
                raise BadGguf(f"{file.path} is one of several parts, and Ollama takes one file; merge them")
        need = llamacpp_memory.need(_plan(spec, files), files)
        first, *others = need.shares
        return Need((replace(first, bytes=first.bytes + SERVER), *others))

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command | Attach:
        if "url" in spec.parameters:
            return _attach(spec, placement)
        blobs = {_digest(role): str(file.path) for role, file in files.items()}
        given = json.dumps({"program": profile.path(PROGRAM), "blobs": blobs})
        environment = {
            "OLLAMA_HOST": str(address),
            "OLLAMA_CONTEXT_LENGTH": str(_context(spec, files)),
            "OLLAMA_NUM_PARALLEL": str(spec.slots),
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_LOAD_TIMEOUT": "-1",
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_NO_CLOUD": "1",
        }
        if (flash := _flash(spec.parameters)) != "auto":
            environment["OLLAMA_FLASH_ATTENTION"] = "1" if flash == "on" else "0"
        if "kv" in spec.parameters:
            environment["OLLAMA_KV_CACHE_TYPE"] = str(spec.parameters["kv"])
        if spec.parallel.pipeline > 1:
            environment["OLLAMA_SCHED_SPREAD"] = "1"
        argv = (sys.executable, "-m", "modelyard.servers.ollama", given)
        return Command(argv, environment, own_folder=True)

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        calls = openai_http.warm_up(replace(spec, model=_name(spec)), self.paths(spec))
        return calls if "url" in spec.parameters else (_create(spec, self.sources(spec)), *calls)

    def elsewhere(self, spec: Spec) -> bool:
        host = urlsplit(str(spec.parameters.get("url", ""))).hostname
        return host not in (None, "localhost", "127.0.0.1", "::1")

    def paths(self, spec: Spec) -> frozenset[str]:
        return frozenset({_EMBEDDINGS} if spec.parameters.get("embedding") else _TEXT_PATHS)

    def context(self, spec: Spec, files: Files) -> int | None:
        return _context(spec, files) if "model" in files else super().context(spec, files)

    def suited(self, spec: Spec, files: Files) -> Mapping[str, object]:
        if "model" not in files or "embedding" in spec.parameters:
            return {}
        return {"embedding": True} if Model(files["model"]).pooling else {}

    def model_name(self, spec: Spec) -> str | None:
        name = _name(spec)
        return None if name == spec.model else name

    def cause(self, exit: Exit, log_tail: str) -> Cause:
        # It lives on when the process that ran the model has not, so its log tells of other ends as well.
        return super().cause(exit, "" if exit.signal is not None else log_tail)


def _name(spec: Spec) -> str:
    """What the model is called there: as it is here, where Ollama takes that."""
    if "url" in spec.parameters:
        return str(spec.parameters.get("model", spec.model))
    return spec.model if _NAME.fullmatch(spec.model) else _OTHER_NAME


def _places(spec: Spec) -> tuple[str, ...]:
    """Where a model in the memory of a server that runs already takes it; nowhere, if that is elsewhere."""
    host = urlsplit(str(spec.parameters["url"])).hostname or ""
    if not (host in ("localhost", "::1") or host.startswith("127.")):
        return ()
    return ("ram",) if spec.on_ram else ("ram", "accelerator")


def _attach(spec: Spec, placement: Placement) -> Attach:
    name = _name(spec)
    load, unload = (
        post("/api/embed", {"model": name, "keep_alive": keep_alive})
        if spec.parameters.get("embedding")
        else post("/api/generate", {"model": name, "keep_alive": keep_alive})
        for keep_alive in (-1, 0)
    )
    device = next((charge.device for charge in placement if charge.device != "ram"), "ram")
    count = partial(_held, name, device, bool(_places(spec)))
    return Attach(
        str(spec.parameters["url"]), load=(load,), unload=(unload,), held=Held(Call("GET", "/api/ps"), count)
    )


def _held(name: str, device: str, here: bool, body: bytes) -> dict[str, int] | None:
    """What a model holds as `/api/ps` says: on this device, and in host RAM. None when it is not in memory.
    Raises ValueError."""
    try:
        models = {model["name"]: model for model in json.loads(body)["models"]}
        model = models.get(name) or models.get(f"{name}:latest")
        if model is None:
            return None
        whole, there = int(model["size"]), int(model["size_vram"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"/api/ps: {error!r}") from error
    if not here:
        return {}
    return {"ram": whole} if device == "ram" else {"ram": whole - there, device: there}


def _digest(role: str) -> str:
    """By what name Ollama knows a file. It asks for a digest and never checks it; one of the role is known
    before the file is."""
    return f"sha256:{hashlib.sha256(role.encode()).hexdigest()}"


def _create(spec: Spec, roles: Collection[str]) -> Call:
    """Have it make a model of the files that it finds in its store."""
    files = {f"{role}.gguf": _digest(role) for role in roles if role != "lora"}
    options = spec.parameters
    settings = options.get("settings")
    parameters = dict(settings) if isinstance(settings, Mapping) else {}
    parameters |= {theirs: options[ours] for ours, theirs in _LOADED_WITH.items() if ours in options}
    parameters["num_gpu"] = _gpu_layers(spec)
    body: dict[str, object] = {"model": _name(spec), "files": files, "parameters": parameters}
    body |= {"adapters": {"lora.gguf": _digest("lora")}} if "lora" in roles else {}
    body |= {name: options[name] for name in ("template", "system") if name in options}
    told = [name for name in ("template", "system", "settings", "lora", "mmproj") if name in options]
    name = f"parameters.{told[0]}" if told else ""
    return post("/api/create", body | {"stream": False}, name=name)


def _flash(options: Mapping[str, object]) -> str:
    """`auto`, `on` or `off`; a cache of another type than f16 needs it."""
    given = options.get("flash_attention", "auto")
    if given == "auto" and options.get("kv", "f16") != "f16":
        return "on"
    return ("on" if given else "off") if isinstance(given, bool) else str(given)


def _gpu_layers(spec: Spec) -> int:
    layers = spec.parameters.get("gpu_layers", 0 if spec.on_ram else _ALL_LAYERS)
    return layers if isinstance(layers, int) else _ALL_LAYERS


def _context(spec: Spec, files: Files) -> int:
    given = spec.parameters.get("context")
    trained = Model(files["model"]).trained_context
    return given if isinstance(given, int) and given else min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _plan(spec: Spec, files: Files) -> Plan:
    options, layers = spec.parameters, _gpu_layers(spec)
    kv, batch = str(options.get("kv", "f16")), options.get("batch")
    return Plan(
        context=_context(spec, files),
        slots=spec.slots,
        kv_k=kv,
        kv_v=kv,
        ubatch=batch if isinstance(batch, int) else _BATCH,
        gpu_layers=layers,
        devices=(1.0,) * spec.parallel.pipeline if layers else (),
        mmap=bool(options.get("mmap", layers > 0)),
        cache_ram=0,
        checkpoints=0,
        draft_gpu_layers=0,
    )
