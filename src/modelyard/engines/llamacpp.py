"""The adapter of llama.cpp: its `llama-server` where there is one, else the `xllamacpp` wheel in a process.

A spec's parameters are the rows of `llamacpp_options.OPTIONS`. `context` is what each slot gets (0: what the
model was trained for); the cache is split, not shared, so that no request can take another's promise. Layers
go to accelerators when `gpu_layers` says so, or the spec may use devices other than `ram`: to one of them, or
in parts to as many as `parallel` or `tensor_split` says or the spec names.

What a llama-server learned or renamed lately is set through its environment: one that does not know a
variable ignores it, one that does not know a flag would not start. Speculation is left to flags: a program
that has none shall say so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from modelyard.core.types import Address, Cause, Need, Parallel, Placement, Spec
from modelyard.engines import llamacpp_memory, llamacpp_options
from modelyard.engines.base import Call, Command, Files, Profile
from modelyard.engines.llama_http import LlamaHttp, warm_up, warm_up_problems
from modelyard.engines.llamacpp_memory import DEFAULT_CONTEXT, MIB, Model, Plan
from modelyard.engines.openai_http import post
from modelyard.engines.options import whole_of
from modelyard.errors import BadGguf

PROGRAM = "llama-server"
MODULE = "xllamacpp"
_ALL_LAYERS = 999
_UBATCH = 512
_RANK = 4  # a GGUF's pooling_type of models that rerank
_TEXT_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/input_tokens",
)
_COMMON_PATHS = ("/tokenize", "/detokenize")

# What the log says before the end, the most telling first: a failed allocation also fails the model.
_CAUSES = (
    ("insufficient memory", Cause.OUT_OF_MEMORY),
    ("failed to allocate", Cause.OUT_OF_MEMORY),
    ("unable to allocate", Cause.OUT_OF_MEMORY),
    ("out of memory", Cause.OUT_OF_MEMORY),
    ("std::bad_alloc", Cause.OUT_OF_MEMORY),
    ("cudaMalloc failed", Cause.OUT_OF_MEMORY),
    ("couldn't bind HTTP server socket", Cause.PORT_IN_USE),
    ("No module named", Cause.NOT_INSTALLED),
    ("error: invalid argument", Cause.BAD_ARGUMENTS),
    ("error while handling argument", Cause.BAD_ARGUMENTS),
    ("is not a parameter of xllamacpp", Cause.BAD_ARGUMENTS),
    ("error loading model", Cause.BAD_MODEL),
    ("failed to load model", Cause.BAD_MODEL),
    ("invalid magic characters", Cause.BAD_MODEL),
    ("failed to open GGUF file", Cause.BAD_MODEL),
)


class LlamaCppEngine(LlamaHttp):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "llamacpp"
    trusted: ClassVar[frozenset[str]] = frozenset({"extra_args", "chat_template.file"})
    folders: ClassVar[bool] = False
    programs: ClassVar[tuple[str, ...]] = (PROGRAM,)
    modules: ClassVar[tuple[str, ...]] = (MODULE,)
    parallel: ClassVar[frozenset[str]] = frozenset({"tensor", "pipeline"})
    causes: ClassVar[tuple[tuple[str, Cause], ...]] = _CAUSES
    spec_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "batching.max_tokens": ("batch", "ubatch"),
        "speculative.draft": ("draft.source",),
        "speculative.tokens": ("draft.max",),
    }
    verified: ClassVar[Literal["real", "golden"]] = "real"

    def missing(self, profile: Profile) -> str:
        if profile.path(PROGRAM) or MODULE in profile.found:
            return ""
        return (
            f"is not installed: there is no {PROGRAM} on PATH, and no Python package {MODULE}; install "
            "llama.cpp, or run `pip install 'modelyard[llamacpp]'`"
        )

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        found = llamacpp_options.problems(spec.parameters)
        options = _options(spec)
        if not spec.source:
            found.append(("source", "is missing: name a GGUF file"))
        if options.get("extra_args") and not profile.path(PROGRAM):
            found.append(("parameters.extra_args", f"needs {PROGRAM}, which is not on PATH"))
        templates = [name for name in options if name.startswith("chat_template.")]
        if len(templates) > 1:
            found.append(("parameters.chat_template", "takes one of name, inline and file"))
        if options.get("embedding") and options.get("rerank"):
            found.append(("parameters.rerank", "excludes embedding: add a model for each"))
        if any(name.startswith("draft.") for name in options) and "draft.source" not in options:
            found.append(("parameters.draft.source", "is missing: name the draft model's GGUF file"))
        if options.get("ngram") and "draft.source" in options:
            found.append(("parameters.ngram", "excludes draft: speculation has one source"))
        return found + _split_problems(spec) + warm_up_problems(spec, self.paths(spec))

    def sources(self, spec: Spec) -> Mapping[str, str]:
        options = _options(spec)
        roles = {"model": spec.source, "draft": options.get("draft.source"), "mmproj": options.get("mmproj")}
        found = {role: str(source) for role, source in roles.items() if source}
        for number, adapter in enumerate(_lora(options)):
            found[f"lora{number}"] = str(adapter["source"])
        return found

    def need(self, spec: Spec, files: Files) -> Need:
        for file in files.values():
            if not file.header:
                raise BadGguf(
                    f"{file.path} is not a GGUF file; name one that is, or convert the model to GGUF"
                )
        return llamacpp_memory.need(_plan(spec, _options(spec), files), files)

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command:
        options = _options(spec)
        plan = _plan(spec, options, files)
        if "main_gpu" in options and options.get("split_mode") == "none":
            options["main_gpu"] = 0  # the mask leaves this one alone
        program = profile.path(PROGRAM)
        if program:
            argv = [program, *_flags(spec, options, plan, address, files)]
            return Command(tuple(argv), environment=_environment(plan))
        parameters = json.dumps(_wheel(spec, options, plan, address, files))
        return Command((sys.executable, "-m", "modelyard.servers.llamacpp", parameters))

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        options = _options(spec)
        body: dict[str, object] = {"model": spec.model}
        if options.get("rerank"):
            first = post("/v1/rerank", body | {"query": "Hello", "documents": ["Hello"]})
        elif options.get("embedding"):
            first = post("/v1/embeddings", body | {"input": "Hello"})
        else:
            first = post("/v1/completions", body | {"prompt": "Hello", "max_tokens": 1})
        return warm_up(spec, self.paths(spec), first)

    def paths(self, spec: Spec) -> frozenset[str]:
        options = _options(spec)
        if options.get("rerank"):
            return frozenset((*_COMMON_PATHS, "/v1/rerank"))
        if options.get("embedding"):
            return frozenset((*_COMMON_PATHS, "/v1/embeddings"))
        return frozenset((*_COMMON_PATHS, *_TEXT_PATHS))

    def context(self, spec: Spec, files: Files) -> int | None:
        if "model" not in files or not files["model"].header:
            return super().context(spec, files)
        return _context(_options(spec), files)

    def suited(self, spec: Spec, files: Files) -> Mapping[str, object]:
        options = _options(spec)
        if "model" not in files or {"embedding", "rerank"} & options.keys():
            return {}
        pooling = Model(files["model"]).pooling
        return {"rerank" if pooling == _RANK else "embedding": True} if pooling else {}


def _options(spec: Spec) -> dict[str, object]:
    """The parameters by dotted name, and those that `parallel` stands for."""
    options = llamacpp_options.flatten(spec.parameters)
    if spec.parallel.devices > 1:
        options["tensor_split"] = [1] * spec.parallel.devices
        options["split_mode"] = "row" if spec.parallel.tensor > 1 else "layer"
    return options


def _lora(options: Mapping[str, object]) -> list[Mapping[str, object]]:
    given = options.get("lora")
    return [item for item in given if isinstance(item, Mapping)] if isinstance(given, list | tuple) else []


def _accelerators(spec: Spec) -> list[str]:
    """Those that the spec names."""
    return [device for device in spec.devices if device != "ram"]


def _parts(spec: Spec, options: Mapping[str, object]) -> tuple[tuple[float, ...], str]:
    """The parts of the model, one per accelerator, and where they may lie (`Plan.devices`, `Plan.on`)."""
    named = _accelerators(spec)
    if options.get("split_mode") == "none":
        pinned = "main_gpu" in options and named
        return (1.0,), named[whole_of(options, "main_gpu", 0)] if pinned else "accelerator"
    split = options.get("tensor_split")
    if isinstance(split, list | tuple):
        return tuple(float(part) for part in split), "accelerator"
    return (1.0,) * max(len(named), 1), "accelerator"


def _split_problems(spec: Spec) -> list[tuple[str, str]]:
    """What is wrong with how the model lies on accelerators."""
    options = llamacpp_options.flatten(spec.parameters)
    if spec.parallel.devices > 1:
        return _parallel_problems(spec.parallel, options)
    named, split, main = _accelerators(spec), options.get("tensor_split"), whole_of(options, "main_gpu", 0)
    parts = len(split) if isinstance(split, list | tuple) else 0
    found = []
    if parts and options.get("split_mode") == "none":
        found.append(
            ("parameters.tensor_split", "has no meaning with split_mode none: leave one of them out")
        )
    elif named and parts > len(named):
        found.append(("parameters.tensor_split", f"has {parts} parts for {len(named)} devices"))
    count = len(named) or parts
    if main and main >= count:
        found.append(("parameters.main_gpu", f"counts the model's `devices` from 0, and it names {count}"))
    return found


def _parallel_problems(parallel: Parallel, options: Mapping[str, object]) -> list[tuple[str, str]]:
    found = [
        (f"parameters.{name}", "says again what `parallel` says: leave one of them out")
        for name in ("tensor_split", "split_mode", "main_gpu")
        if name in options
    ]
    if parallel.tensor > 1 and parallel.pipeline > 1:
        found.append(("parallel", "llama.cpp splits rows (tensor) or layers (pipeline), not both at once"))
    if options.get("gpu_layers") == 0:
        found.append(("parameters.gpu_layers", "leaves nothing to be split over devices"))
    return found


def _context(options: Mapping[str, object], files: Files) -> int:
    trained = Model(files["model"]).trained_context if "model" in files else 0
    context = whole_of(options, "context", min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT))
    return context or trained or DEFAULT_CONTEXT


def _plan(spec: Spec, options: Mapping[str, object], files: Files) -> Plan:
    layers = options.get("gpu_layers", 0 if spec.on_ram else "all")
    gpu_layers = layers if isinstance(layers, int) else _ALL_LAYERS
    devices, on = _parts(spec, options)
    return Plan(
        context=_context(options, files),
        slots=spec.slots,
        kv_k=str(options.get("kv.k", "f16")),
        kv_v=str(options.get("kv.v", "f16")),
        ubatch=whole_of(options, "ubatch", _UBATCH),
        gpu_layers=gpu_layers,
        devices=devices if gpu_layers else (),
        on=on,
        mmap=bool(options.get("mmap", gpu_layers > 0)),
        cache_ram=whole_of(options, "cache_ram_mib", 0) * MIB,
        checkpoints=whole_of(options, "context_checkpoints", 0),
        draft_gpu_layers=whole_of(options, "draft.gpu_layers", gpu_layers),
        ngram=str(options.get("ngram", "")),
    )


def _flags(
    spec: Spec, options: Mapping[str, object], plan: Plan, address: Address, files: Files
) -> list[str]:
    argv = ["--model", str(files["model"].path), "--alias", spec.model]
    argv += (
        ["--host", address.path] if address.path else ["--host", address.host, "--port", str(address.port)]
    )
    argv += ["--ctx-size", str(plan.context * plan.slots), "--parallel", str(plan.slots)]
    argv += ["--gpu-layers", str(plan.gpu_layers), "--metrics", "--slots", "--jinja"]
    for option in llamacpp_options.OPTIONS:
        if option.name in options:
            argv += option.argv(options[option.name])
    for number, adapter in enumerate(_lora(options)):
        argv += ["--lora-scaled", f"{files[f'lora{number}'].path}:{adapter.get('scale', 1.0)}"]
    if options.get("embedding"):
        argv.append("--embeddings")
    if options.get("rerank"):
        argv.append("--reranking")
    if "draft" in files:
        argv += ["--spec-type", "draft-simple", "--spec-draft-model", str(files["draft"].path)]
    if options.get("ngram"):
        argv += ["--spec-type", f"ngram-{options['ngram']}"]
    if "mmproj" in files:
        argv += ["--mmproj", str(files["mmproj"].path)]
    extra = options.get("extra_args")
    return argv + ([str(item) for item in extra] if isinstance(extra, list | tuple) else [])


def _environment(plan: Plan) -> dict[str, str]:
    environment = {
        "LLAMA_ARG_CACHE_RAM": str(plan.cache_ram // MIB),
        "LLAMA_ARG_CORS_ORIGINS": "localhost",
        "LLAMA_ARG_CTX_CHECKPOINTS": str(plan.checkpoints),
        "LLAMA_ARG_FIT": "off",
        "LLAMA_ARG_LOAD_MODE": "mmap" if plan.mmap else "none",
        "LLAMA_ARG_UI": "0",
        "LLAMA_ARG_WEBUI": "0",
    }
    # Older programs know only that this one is set; its value means nothing to them.
    return environment if plan.mmap else environment | {"LLAMA_ARG_NO_MMAP": "1"}


def _wheel(
    spec: Spec, options: Mapping[str, object], plan: Plan, address: Address, files: Files
) -> dict[str, object]:
    parameters: dict[str, object] = {
        "model.path": str(files["model"].path),
        "model_alias": [spec.model],
        "hostnames": [address.path or address.host],
        "port": address.port,
        "n_ctx": plan.context * plan.slots,
        "n_parallel": plan.slots,
        "n_gpu_layers": plan.gpu_layers,
        "load_mode": "LLAMA_LOAD_MODE_MMAP" if plan.mmap else "LLAMA_LOAD_MODE_NONE",
        "cache_ram_mib": plan.cache_ram // MIB,
        "n_ctx_checkpoints": plan.checkpoints,
        "endpoint_metrics": True,
        "endpoint_slots": True,
        "fit_params": False,
        "ui": False,
        "cors_origins": "localhost",
    }
    for option in llamacpp_options.OPTIONS:
        if option.name in options:
            parameters |= option.wheel(options[option.name])
    if _lora(options):
        parameters["lora_adapters"] = [
            {"path": str(files[f"lora{number}"].path), "scale": adapter.get("scale", 1.0)}
            for number, adapter in enumerate(_lora(options))
        ]
    if options.get("embedding") or options.get("rerank"):
        parameters["embedding"] = True
    if options.get("rerank"):
        parameters["pooling_type"] = "LLAMA_POOLING_TYPE_RANK"
    if "draft" in files:
        parameters["speculative.draft.mparams.path"] = str(files["draft"].path)
        parameters["speculative.types"] = ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"]
    if options.get("ngram"):
        kind = str(options["ngram"]).upper().replace("-", "_")
        parameters["speculative.types"] = [f"COMMON_SPECULATIVE_TYPE_NGRAM_{kind}"]
    if "mmproj" in files:
        parameters["mmproj.path"] = str(files["mmproj"].path)
    return parameters
