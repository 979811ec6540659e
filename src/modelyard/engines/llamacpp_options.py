"""The parameters of a llama.cpp model: their check, and the one table that turns them into a command.

Called by the adapter `engines.llamacpp`. A row of `OPTIONS` names a parameter (dots go into mappings), says
which values it takes, and how both programs are told: the flag of `llama-server`, and the attribute of the
wheel's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from modelyard.engines import options
from modelyard.engines.options import fraction, one_of, path, text, texts, truth, whole, word

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
NGRAMS = ("simple", "map-k", "map-k4v", "mod", "cache")


@dataclass(frozen=True)
class Option(options.Option):
    """One parameter. `enum` is the prefix of the wheel's enum members; `attribute` empty: the adapter sets it
    by hand."""

    attribute: str = ""
    enum: str = ""

    def wheel(self, value: object) -> dict[str, object]:
        """How the wheel is told: attribute path to value."""
        if not self.attribute:
            return {}
        if self.enum:
            return {
                self.attribute: self.enum + _MEMBERS.get(str(value), str(value)).upper().replace("-", "_")
            }
        return {self.attribute: list(value) if isinstance(value, tuple) else value}


_MEMBERS = {"on": "enabled", "off": "disabled"}


def parts(value: object) -> str:
    fine = (
        isinstance(value, list | tuple)
        and all(
            isinstance(item, int | float) and not isinstance(item, bool) and 0 <= item < inf for item in value
        )
        and any(value)
    )
    return "" if fine else "must be a list of numbers, one per device, e.g. [3, 1]"


def layers(value: object) -> str:
    return "" if value == "all" else whole(0)(value) and "must be `all` or a whole number, 0 or more"


def adapters(value: object) -> str:
    fine = isinstance(value, list | tuple) and all(
        isinstance(item, Mapping)
        and isinstance(item.get("source"), str)
        and isinstance(item.get("scale", 1.0), int | float)
        and set(item) <= {"source", "scale"}
        for item in value
    )
    return "" if fine else "must be a list of {source, scale}"


OPTIONS: tuple[Option, ...] = (
    Option("context", whole(0)),
    Option("kv.k", one_of(*KV_TYPES), "--cache-type-k", "cache_type_k", "GGML_TYPE_"),
    Option("kv.v", one_of(*KV_TYPES), "--cache-type-v", "cache_type_v", "GGML_TYPE_"),
    Option("threads", whole(1), "--threads", "cpuparams.n_threads"),
    Option("threads_batch", whole(1), "--threads-batch", "cpuparams_batch.n_threads"),
    Option("gpu_layers", layers),
    Option("tensor_split", parts, "--tensor-split", "tensor_split"),
    Option("split_mode", one_of("none", "layer", "row"), "--split-mode", "split_mode", "LLAMA_SPLIT_MODE_"),
    Option("main_gpu", whole(0), "--main-gpu", "main_gpu"),
    Option(
        "flash_attention",
        one_of("auto", "on", "off"),
        "--flash-attn",
        "flash_attn_type",
        "LLAMA_FLASH_ATTN_TYPE_",
    ),
    Option("mmap", truth),
    Option("batch", whole(1), "--batch-size", "n_batch"),
    Option("ubatch", whole(1), "--ubatch-size", "n_ubatch"),
    Option("cache_ram_mib", whole(0)),
    Option("context_checkpoints", whole(0)),
    Option("lora", adapters),
    Option("chat_template.name", word, "--chat-template", "chat_template"),
    Option("chat_template.inline", word, "--chat-template", "chat_template"),
    Option("chat_template.file", path, "--chat-template-file", "chat_template_file"),
    Option(
        "reasoning.format",
        one_of("none", "auto", "deepseek", "deepseek-legacy"),
        "--reasoning-format",
        "reasoning_format",
        "COMMON_REASONING_FORMAT_",
    ),
    Option("reasoning.budget", whole(-1), "--reasoning-budget", "sampling.reasoning_budget_tokens"),
    Option("embedding", truth),
    Option("rerank", truth),
    Option(
        "pooling",
        one_of("none", "mean", "cls", "last", "rank"),
        "--pooling",
        "pooling_type",
        "LLAMA_POOLING_TYPE_",
    ),
    Option("draft.source", text),
    Option("draft.max", whole(1), "--spec-draft-n-max", "speculative.draft.n_max"),
    Option("draft.min", whole(0), "--spec-draft-n-min", "speculative.draft.n_min"),
    Option("draft.p_min", fraction, "--spec-draft-p-min", "speculative.draft.p_min"),
    Option("draft.gpu_layers", whole(0), "--spec-draft-ngl", "speculative.draft.n_gpu_layers"),
    Option("ngram", one_of(*NGRAMS)),
    Option("mmproj", text),
    Option("extra_args", texts),
)
_TABLE = options.Table("llamacpp", OPTIONS)
problems = _TABLE.problems


def flatten(parameters: Mapping[str, object]) -> dict[str, object]:
    """The parameters by dotted name; YAML's truth values for `on` and `off` are words again."""
    return {name: _word(name, value) for name, value in _TABLE.walk(parameters)}


def _word(name: str, value: object) -> object:
    if name == "flash_attention" and isinstance(value, bool):
        return "on" if value else "off"
    return value
