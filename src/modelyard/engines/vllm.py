"""The adapter of vLLM: `vllm serve` on a folder of safetensors.

A spec's parameters are the rows of `vllm_options.OPTIONS`. `context` is what a request may take (0: what the
model was trained for); the cache holds that for each slot, and its size is said in bytes, so that vLLM takes
neither more nor less than was reserved. It computes on the CPU when the spec may use `ram` alone, else on
accelerators, as `parallel` says; a vLLM is built for one of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from modelyard.core.types import Address, Cause, Need, Placement, Spec
from modelyard.engines import openai_http, vllm_memory, vllm_options
from modelyard.engines.adapter import Adapter
from modelyard.engines.base import Call, Command, Files, Profile, Rung, Work
from modelyard.engines.exposition import ratio, sums
from modelyard.engines.options import whole_of
from modelyard.engines.vllm_memory import CUDA_CONTEXT, DEFAULT_CONTEXT, MIB, Model, Plan
from modelyard.errors import BadFile

PROGRAM = "vllm"
_BASE = "base"  # what the model under an adapter is called; nobody asks for it
_DRAFT_TOKENS = 5
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_KV_USE = "vllm:kv_cache_usage_perc"
_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) (?:[A-Z]+ [\d-]+ [\d:]+ \[[^]]*\] ?)?")
_ERROR = re.compile(r"(?:[\w.]*(?:Error|Exception|Interrupt)\b|vllm[\w ]*: error): ?.*")
_TOLD = 4  # errors
# What a process says when another one has said why.
_LATER = ("Engine core initialization failed", "WorkerProc initialization failed", "Worker failed with")
# What the log says before the end, the most telling first.
_CAUSES = (
    ("OutOfMemoryError", Cause.OUT_OF_MEMORY),
    ("out of memory", Cause.OUT_OF_MEMORY),
    ("is less than desired", Cause.OUT_OF_MEMORY),
    ("is less than requested memory", Cause.OUT_OF_MEMORY),
    ("No available memory for the cache blocks", Cause.OUT_OF_MEMORY),
    ("can't allocate memory", Cause.OUT_OF_MEMORY),
    ("Cannot allocate memory", Cause.OUT_OF_MEMORY),
    ("MemoryError", Cause.OUT_OF_MEMORY),
    ("std::bad_alloc", Cause.OUT_OF_MEMORY),
    ("Address already in use", Cause.PORT_IN_USE),
    ("No module named", Cause.NOT_INSTALLED),
    ("error: unrecognized arguments", Cause.BAD_ARGUMENTS),
    ("error: argument", Cause.BAD_ARGUMENTS),
    ("invalid literal for int() with base 10: 'GPU-", Cause.BAD_ARGUMENTS),  # it knows no UUIDs of GPUs
    ("invalid tool call parser", Cause.BAD_ARGUMENTS),
    ("invalid reasoning parser", Cause.BAD_ARGUMENTS),
    ("is greater than the derived max_model_len", Cause.BAD_ARGUMENTS),
    ("KV cache is needed", Cause.BAD_ARGUMENTS),
    ("Cannot find any model weights", Cause.BAD_MODEL),
    ("SafetensorError", Cause.BAD_MODEL),
    ("are not supported for now", Cause.BAD_MODEL),
    ("Invalid repository ID or local directory", Cause.BAD_MODEL),
    ("validation error for ModelConfig", Cause.BAD_MODEL),
)
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # its files are there
    "VLLM_LOGGING_COLOR": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_RPC_BASE_PATH": ".",  # its processes leave sockets behind: in their own folder
}


class VllmEngine(Adapter):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "vllm"
    programs: ClassVar[tuple[str, ...]] = (PROGRAM,)
    verified: ClassVar[Literal["real", "golden"]] = "real"
    unix: ClassVar[bool] = True
    trusted: ClassVar[frozenset[str]] = frozenset({"extra_args", "chat_template.file"})
    parallel: ClassVar[frozenset[str]] = frozenset({"tensor", "pipeline"})
    dead: ClassVar[bytes] = b"EngineCore encountered an issue"
    causes: ClassVar[tuple[tuple[str, Cause], ...]] = _CAUSES
    spec_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "batching.max_size": ("batch_size",),
        "batching.max_tokens": ("batch",),
        "speculative.draft": ("draft.source",),
        "speculative.tokens": ("draft.max",),
    }
    chat_fields: ClassVar[frozenset[str]] = frozenset(
        {
            *("top_k", "min_p", "repetition_penalty", "length_penalty", "min_tokens", "ignore_eos"),
            *("stop_token_ids", "include_stop_str_in_output", "bad_words", "allowed_token_ids"),
            *("skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens"),
            *("prompt_logprobs", "structured_outputs", "chat_template_kwargs", "thinking_token_budget"),
            *("include_reasoning", "add_generation_prompt", "continue_final_message", "documents"),
        }
    )

    def missing(self, profile: Profile) -> str:
        if profile.path(PROGRAM):
            return ""
        return (
            f"is not installed: there is no {PROGRAM} on PATH; run `pip install vllm` (in an environment of "
            "its own: then name its bin/vllm as the `program` of a profile under `engines:`)"
        )

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        found = vllm_options.problems(spec.parameters)
        options = vllm_options.flatten(spec.parameters)
        if not spec.source:
            found.append(("source", "is missing: name a folder of safetensors, e.g. hf://ORG/REPO"))
        if options.get("embedding") and options.get("rerank"):
            found.append(("parameters.rerank", "excludes embedding: add a model for each"))
        if "chat_template.inline" in options and "chat_template.file" in options:
            found.append(("parameters.chat_template", "takes one of inline and file"))
        if "draft.max" in options and "draft.source" not in options:
            found.append(("parameters.draft.source", "is missing: name the draft model's folder"))
        if "ngram" in options and "draft.source" in options:
            found.append(("parameters.ngram", "excludes draft: speculation has one source"))
        if spec.on_ram and options.get("sleep_mode"):
            found.append(("parameters.sleep_mode", "needs a GPU: vLLM does not sleep on the CPU"))
        return found + openai_http.warm_up_problems(spec, self.paths(spec))

    def sources(self, spec: Spec) -> Mapping[str, str]:
        options = vllm_options.flatten(spec.parameters)
        roles = {"model": spec.source, "draft": options.get("draft.source"), "lora0": _lora(options)}
        return {role: str(source) for role, source in roles.items() if source}

    def need(self, spec: Spec, files: Files) -> Need:
        if "config" not in files["model"].header:
            path = files["model"].path
            raise BadFile(f"{path} is no folder of safetensors; name one, e.g. hf://ORG/REPO")
        return vllm_memory.need(_plan(spec, files), files)

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command:
        options, plan = vllm_options.flatten(spec.parameters), _plan(spec, files)
        options["batch"] = plan.batch  # its own default depends on the GPU
        argv = [profile.path(PROGRAM), "serve", str(files["model"].path)]
        argv += ["--uds", address.path] if address.path else []
        argv += [] if address.path else ["--host", address.host, "--port", str(address.port)]
        argv += _name(spec, files)
        argv += ["--max-model-len", str(plan.context)]
        argv += ["--max-num-seqs", str(whole_of(options, "batch_size", spec.slots))]
        argv += _memory(plan, placement, files)
        if spec.parallel.devices > 1:
            argv += ["--tensor-parallel-size", str(spec.parallel.tensor)]
            argv += ["--pipeline-parallel-size", str(spec.parallel.pipeline)]
        for option in vllm_options.OPTIONS:
            if option.name in options:
                argv += option.argv(options[option.name])
        argv += [*_task(options), *_speculation(options, files), "--disable-uvicorn-access-log"]
        if "tool_call_parser" in options:
            argv.append("--enable-auto-tool-choice")
        extra = options.get("extra_args")
        argv += [str(item) for item in extra] if isinstance(extra, list | tuple) else []
        sleeps = {"VLLM_SERVER_DEV_MODE": "1"} if options.get("sleep_mode") else {}
        return Command(tuple(argv), {**_ENVIRONMENT, **sleeps}, own_folder=True)

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        return openai_http.warm_up(spec, self.paths(spec))

    def rungs(self, spec: Spec, files: Files) -> Sequence[Rung]:
        """Level 1 keeps the weights in host RAM; level 2 reads the model's own files anew."""
        options, plan = vllm_options.flatten(spec.parameters), _plan(spec, files)
        if not options.get("sleep_mode"):
            return ()
        first, second = (vllm_memory.asleep(plan, files, keeps_weights=keeps) for keeps in (True, False))
        rungs = [Rung("level-1", first, (Call("POST", "/sleep?level=1"),), (Call("POST", "/wake_up"),))]
        plain = not {"quantization", "draft", "lora0"} & (options.keys() | files.keys())
        if plain and not Model(files["model"]).quantized:
            reload = openai_http.post("/collective_rpc", {"method": "reload_weights"})
            wake = (Call("POST", "/wake_up?tags=weights"), reload, Call("POST", "/wake_up?tags=kv_cache"))
            rungs.append(Rung("level-2", second, (Call("POST", "/sleep?level=2"),), wake))
        return rungs

    def paths(self, spec: Spec) -> frozenset[str]:
        options = vllm_options.flatten(spec.parameters)
        if options.get("rerank"):
            return frozenset({"/v1/rerank"})
        if options.get("embedding"):
            return frozenset({"/v1/embeddings"})
        return frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})

    def context(self, spec: Spec, files: Files) -> int | None:
        return _context(spec, files) if "model" in files else super().context(spec, files)

    def suited(self, spec: Spec, files: Files) -> Mapping[str, object]:
        options = vllm_options.flatten(spec.parameters)
        if "model" not in files or {"embedding", "rerank"} & options.keys():
            return {}
        made_for = Model(files["model"]).architectures
        if any(name.endswith("ForSequenceClassification") for name in made_for):
            return {"rerank": True}
        return {"embedding": True} if any(name.endswith("Model") for name in made_for) else {}

    def busy(self) -> Call | None:
        return Call("GET", "/metrics")

    def count_busy(self, body: bytes) -> int:
        found = sums(body, (_RUNNING, _WAITING))
        if not found:
            raise ValueError("/metrics: does not tell how many requests are running")
        return int(sum(found.values()))

    def work(self) -> Call | None:
        return self.busy()

    def read_work(self, body: bytes) -> Work:
        found = sums(body, (_RUNNING, _KV_USE, _DRAFTED, _ACCEPTED))
        accepted = ratio(found.get(_ACCEPTED), found.get(_DRAFTED))
        return Work(found.get(_RUNNING), found.get(_KV_USE), accepted)

    def telling(self, log_tail: str) -> str:
        lines = [_PREFIX.sub("", line) for line in log_tail.split("\n")]
        told: list[str] = []
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if _ERROR.match(line) and not any(text in line for text in _LATER):
                told.append(line + after if after.startswith("  ") else line)  # pydantic goes on there
        return "\n".join([*dict.fromkeys(told)][-_TOLD:]) or super().telling(log_tail)


def _lora(options: Mapping[str, object]) -> object:
    given = options.get("lora")
    first = given[0] if isinstance(given, list | tuple) and given else {}
    return first.get("source") if isinstance(first, Mapping) else None


def _context(spec: Spec, files: Files) -> int:
    trained = Model(files["model"]).trained_context
    context = whole_of(spec.parameters, "context", min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT))
    return context or trained or DEFAULT_CONTEXT


def _plan(spec: Spec, files: Files) -> Plan:
    options = vllm_options.flatten(spec.parameters)
    element = vllm_memory.element(str(options.get("dtype", "auto")))
    kv = str(options.get("kv_cache_dtype", "auto"))
    context, most = _context(spec, files), whole_of(options, "batch_size", spec.slots)
    pooling = bool(options.get("embedding") or options.get("rerank"))
    return Plan(
        context=context,
        slots=spec.slots,
        parallel=spec.parallel,
        on_ram=spec.on_ram,
        batch=whole_of(options, "batch", Model(files["model"]).batch(context, most, pooling=pooling)),
        element=element,
        kv_element=1 if kv.startswith("fp8") else element,
        kv_cache=whole_of(options, "kv_cache_mib", 0) * MIB,
        eager=bool(options.get("enforce_eager")),
    )


def _name(spec: Spec, files: Files) -> list[str]:
    """It answers to the public name: with an adapter where there is one."""
    if "lora0" not in files:
        return ["--served-model-name", spec.model]
    module = json.dumps({"name": spec.model, "path": str(files["lora0"].path)})
    return ["--served-model-name", _BASE, "--enable-lora", "--lora-modules", module]


def _memory(plan: Plan, placement: Placement, files: Files) -> list[str]:
    cache = vllm_memory.kv_cache(plan, files)
    argv = ["--kv-cache-memory-bytes", str(cache)] if cache else []
    # It does not start where less than this is free, and looks when its CUDA context is there already.
    parts = [
        (charge.bytes - CUDA_CONTEXT) / charge.total
        for charge in placement
        if charge.device != "ram" and charge.total
    ]
    if parts and not plan.on_ram:
        argv += ["--gpu-memory-utilization", f"{min(max(*parts, 0.01), 1.0):.4f}"]
    return argv


def _task(options: Mapping[str, object]) -> list[str]:
    argv = []
    if options.get("embedding") or options.get("rerank"):
        argv += ["--runner", "pooling", "--convert", "classify" if options.get("rerank") else "embed"]
    if "pooling" in options:
        argv += ["--pooler-config", json.dumps({"pooling_type": str(options["pooling"]).upper()})]
    return argv


def _speculation(options: Mapping[str, object], files: Files) -> Iterator[str]:
    config: dict[str, object] = {}
    if "draft" in files:
        tokens = whole_of(options, "draft.max", _DRAFT_TOKENS)
        config = {"model": str(files["draft"].path), "num_speculative_tokens": tokens}
    elif "ngram" in options:
        config = {"method": "ngram", "num_speculative_tokens": options["ngram"]}
    if config:
        yield from ("--speculative-config", json.dumps(config))
