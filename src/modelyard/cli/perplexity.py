"""Whether the files of a model load and generate, and how well each expects a text: what is told
of a quantization.

Used by `modelyard quantize`. Both are served by a real engine. Perplexity is exp(-mean log p) over the text's
tokens but the first: each token is forced after those before it (`logit_bias`), and the server says which
probability the model itself gave it. The tokens before it are cached, so each costs one step of a generation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

from modelyard.embed import Modelyard
from modelyard.errors import EngineFailed

# From the beginning of Alice's Adventures in Wonderland (Lewis Carroll, 1865), which is in the public domain.
TEXT = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to "
    "do: once or twice she had peeped into the book her sister was reading, but it had no pictures or "
    "conversations in it, “and what is the use of a book,” thought Alice “without pictures or "
    "conversations?” So she was considering in her own mind (as well as she could, for the hot day made her "
    "feel very sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the trouble."
)
PROMPT = "Once upon a time"
CONTEXT = 512
_FORCE = 10_000.0  # a bias that no token outweighs; the probability is told without it


@dataclass(frozen=True, slots=True)
class Check:
    """What an engine made of a file: a few words after PROMPT, and its perplexity on `tokens` of TEXT."""

    words: str
    perplexity: float
    tokens: int


def check(files: Mapping[str, Path], tell: Callable[[str], None]) -> dict[str, Check]:
    """Serve each of these files alone, by llama.cpp, and measure it. `tell` is told what is done now. Raises
    ModelyardError for one that does not load or answer."""
    model = {"engine": "llamacpp", "parameters": {"context": CONTEXT}, "keep_alive": "forever"}
    models = {name: {**model, "source": str(path)} for name, path in files.items()}
    found = {}
    with (
        tempfile.TemporaryDirectory(prefix="modelyard-check-") as folder,
        Modelyard({"server": {"data_dir": folder}, "models": models}) as yard,
    ):
        for name in files:
            tell(f"loading {name}")
            yard.load(name)
            words = _generate(yard, name, PROMPT, max_tokens=12)["text"]
            tell(f"measuring {name}")
            found[name] = Check(PROMPT + words, *_perplexity(yard, name))
            yard.unload(name)
    return found


def _perplexity(yard: Modelyard, model: str) -> tuple[float, int]:
    answer = yard.call("POST", "/tokenize", {"model": model, "content": TEXT, "add_special": True})
    tokens = answer["tokens"][:CONTEXT]
    total = 0.0
    for at in range(1, len(tokens)):
        forced = {"logit_bias": [[tokens[at], _FORCE]], "logprobs": 1}
        (one,) = _generate(yard, model, tokens[:at], max_tokens=1, **forced)["logprobs"]["content"]
        if one["id"] != tokens[at]:
            raise EngineFailed("the engine does not honour logit_bias: it cannot be measured")
        total += one["logprob"]
    return exp(-total / (len(tokens) - 1)), len(tokens)


def _generate(yard: Modelyard, model: str, prompt: object, **more: object) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "temperature": 0, "cache_prompt": True, **more}
    (choice,) = yard.call("POST", "/v1/completions", body)["choices"]
    return dict(choice)
