"""Warm-up: the first answer of an instance that has just become ready, against those after it.

Run as `python bench/run.py warm-up`. Each start is measured alone, in an order that the seed shuffles. All
prompts are equally long and none begins as another does, so that nothing of them is cached.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from measuring import median_and_spread, report, table
from modelyard.core.types import Spec
from modelyard.embed import Modelyard
from modelyard.engines.base import Call
from modelyard.engines.llamacpp import LlamaCppEngine
from swap import demo_model

WORDS = ("red", "blue", "stone", "water", "tree", "house", "run", "jump", "sing", "cloud", "star", "moon")
LENGTH = 30  # words, about as many tokens
STEADY = 3  # answers after the first
BOUND = 1.2  # that the first may take of a steady one
KINDS = {  # how a model is warmed up, in words
    "nothing": "nothing (ready when its health check says so)",
    "token": "one token, as without `warm_up:`",
    "prompt": "a prompt as long as the requests",
}
_warm_up = LlamaCppEngine.warm_up


def measure(starts: int, seed: int) -> None:
    """Run the starts of each kind; write bench/out/warm-up.json."""
    order = random.Random(seed)
    times: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    LlamaCppEngine.warm_up = _none_for_nothing  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder, _yard(Path(folder)) as yard:
            client = httpx.Client(
                transport=httpx.HTTPTransport(uds=yard.url.removeprefix("unix:")),
                base_url="http://localhost",
                timeout=120.0,
            )
            for _ in range(starts):
                for kind in order.sample(list(KINDS), len(KINDS)):
                    yard.load(kind)
                    times[kind].append([_first_token(client, kind, order) for _ in range(1 + STEADY)])
                    yard.unload(kind)
    finally:
        LlamaCppEngine.warm_up = _warm_up  # type: ignore[method-assign]
    _report(times, starts, seed)


def _none_for_nothing(self: LlamaCppEngine, spec: Spec) -> Sequence[Call]:
    """What the product itself never does is measured as well."""
    return () if spec.model == "nothing" else _warm_up(self, spec)


def _yard(folder: Path) -> Modelyard:
    parameters = {"context": 1024, "mmap": False}
    model = {"source": str(demo_model()), "engine": "llamacpp", "devices": ["ram"], "parameters": parameters}
    models: dict[str, dict[str, object]] = {kind: dict(model) for kind in KINDS}
    models["prompt"]["warm_up"] = {"prompts": [_prompt(random.Random(0))]}
    return Modelyard({"server": {"data_dir": str(folder / "data")}, "models": models})


def _prompt(order: random.Random) -> str:
    return " ".join(order.choice(WORDS) for _ in range(LENGTH))


def _first_token(client: httpx.Client, model: str, order: random.Random) -> float:
    """Seconds from now until the first event of a stream; the answer is then read to its end."""
    body = {
        "model": model,
        "prompt": _prompt(order),
        "max_tokens": 2,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    took = 0.0
    begin = time.perf_counter()
    with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {answer.read().decode()}")
        for line in answer.iter_lines():
            if not took and line.startswith("data: {"):
                took = time.perf_counter() - begin
    if not took:
        raise RuntimeError(f"the answer of {model} held no event")
    return took


def _report(times: dict[str, list[list[float]]], starts: int, seed: int) -> None:
    rows, ratios = [], {}
    for kind, words in KINDS.items():
        first = [one[0] for one in times[kind]]
        steady = [statistics.median(one[1:]) for one in times[kind]]
        ratios[kind] = [early / late for early, late in zip(first, steady, strict=True)]
        cells = [median_and_spread([1000 * one for one in values]) for values in (first, steady)]
        rows.append([words, *cells, f"{statistics.median(ratios[kind]):.2f}"])
    held = statistics.median(ratios["prompt"]) <= BOUND
    note = (
        f"\n\nMedian (smallest-largest) of {starts} starts each, interleaved, seed {seed}; the ratio is the"
        f" median of those within a start. With a warm-up it {'is' if held else 'IS NOT'} at most {BOUND}."
    )
    head = ["what comes before ready", "first answer, ms", f"the {STEADY} after it, ms", "ratio"]
    values = {"seed": seed, "seconds": times, "ratios": ratios, "held": held}
    report("warm-up", "Time to first token after ready", table(head, rows) + note, values)
