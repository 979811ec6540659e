"""The parameters of a vLLM model: their check, and the one table that turns them into flags of `vllm serve`.

Called by the adapter `engines.vllm`. What other engines have, too, has the name that it has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelyard.engines import options
from modelyard.engines.options import one_of, path, text, texts, truth, whole, word

DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
POOLINGS = ("mean", "cls", "last")


@dataclass(frozen=True)
class Option(options.Option):
    """One parameter. A truth value is said by the flag, or by its negation."""

    def argv(self, value: object) -> list[str]:
        if isinstance(value, bool) and self.flag:
            return [self.flag if value else f"--no-{self.flag.removeprefix('--')}"]
        return super().argv(value)


def adapter(value: object) -> str:
    fine = isinstance(value, list | tuple) and all(
        isinstance(item, Mapping) and isinstance(item.get("source"), str) and set(item) == {"source"}
        for item in value
    )
    if fine and isinstance(value, list | tuple) and len(value) > 1:
        return "takes one adapter, for a request is computed with one: add a model for each"
    return "" if fine and value else "must be a list of one {source}"


def template(value: object) -> str:
    """A template of chats. vLLM opens as a file whatever is the name of one."""
    fine = not word(value) and "{" in str(value)
    return "" if fine else "must be a template, which has {{ … }} or {% … %}; the path of one is `file`"


OPTIONS: tuple[Option, ...] = (
    Option("context", whole(0)),
    Option("dtype", one_of(*DTYPES), "--dtype"),
    Option("quantization", word, "--quantization"),
    Option("kv_cache_dtype", word, "--kv-cache-dtype"),
    Option("kv_cache_mib", whole(1)),
    Option("batch_size", whole(1)),
    Option("batch", whole(1), "--max-num-batched-tokens"),
    Option("prefix_caching", truth, "--enable-prefix-caching"),
    Option("enforce_eager", truth, "--enforce-eager"),
    Option("seed", whole(0), "--seed"),
    Option("lora", adapter),
    Option("lora_rank", whole(1), "--max-lora-rank"),
    Option("chat_template.inline", template, "--chat-template"),
    Option("chat_template.file", path, "--chat-template"),
    Option("tool_call_parser", word, "--tool-call-parser"),
    Option("reasoning_parser", word, "--reasoning-parser"),
    Option("embedding", truth),
    Option("rerank", truth),
    Option("pooling", one_of(*POOLINGS)),
    Option("draft.source", text),
    Option("draft.max", whole(1)),
    Option("ngram", whole(1)),
    Option("sleep_mode", truth, "--enable-sleep-mode"),
    Option("extra_args", texts),
)
_TABLE = options.Table("vllm", OPTIONS)
problems = _TABLE.problems


def flatten(parameters: Mapping[str, object]) -> dict[str, object]:
    """The parameters by dotted name."""
    return dict(_TABLE.walk(parameters))
