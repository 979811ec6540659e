"""What batching is worth to translations: CTranslate2 with ours against Transformers one by one, against
batches in the order of arrival, and many clients against one.

    make bench-translation      # PYTHON=… for one that has `modelyard[transformers,translation]` already

The model has the shape of M2M100-418M and gives its text back (`copying_model`), so that an output is as long
as its text, and every one can be checked. Lengths are log-uniform from 2 to 100 tokens, the search is greedy.
All of it takes turns, in the same order each round. Many clients have as many texts under way as there are of
them, so one client's `batch()` gets as many at a time; what it makes of all texts at once is shown beside.
Batches, ours and by arrival, are computed by replicas that share the cores, and as CTranslate2 does by
itself: one after the other on all cores. Those by arrival have as many tokens as ours may have, padding
included: what a batch takes of memory goes by that. Beside them are some of as many texts as ours had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import mean, median

# Threads that wait busily take from each other what they wait for; our server has them sleep as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import httpx
import numpy as np

import copying_model
from measuring import BUILT, median_and_spread, report, table
from modelyard.servers.translation import packed, serving
from modelyard.servers.translation.backends import BATCH_TOKENS, Backend, Output, Segment
from modelyard.servers.translation.ctranslate2_backend import CTranslate2Backend
from modelyard.servers.translation.texts import longest_output
from modelyard.servers.translation.translator import Translator

CLIENTS = 64
PAIR = ("en", "fr")
OURS, SPREAD = "CTranslate2 int8, our batches", "CTranslate2 int8, by arrival"
COUNT = f"{SPREAD}, as many texts"
ONE, ARRIVAL = f"{OURS}, one by one", f"{SPREAD}, one by one"
ALONE = "Transformers one by one"
MANY = f"{CLIENTS} clients, single texts"
BATCH, WHOLE = f"one client's batch(), {CLIENTS} at a time", "one client's batch(), all at once"

NAMES = {
    "one": ONE,
    "arrival": ARRIVAL,
    "ours": OURS,
    "spread": SPREAD,
    "count": COUNT,
    "batch": BATCH,
    "whole": WHOLE,
    "many": MANY,
    "alone": ALONE,
}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--texts", type=int, default=128)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--ways", nargs="+", choices=(*NAMES,), default=[*NAMES])
    given = arguments.parse_args()
    if "count" in given.ways and "ours" not in given.ways:
        arguments.error("--ways count: its batches have as many texts as those of `ours`; measure that too")
    folder, file = _model(given.seed)
    texts = _texts(given.texts, given.seed)
    with tempfile.TemporaryDirectory(prefix="modelyard-") as name:
        unpacked = Path(name) / "model"
        unpacked.mkdir()
        packed.unpack(file, unpacked)
        with _server(file, Path(name)) as socket:
            ways = _ways(folder, unpacked, socket, given.ways)
            _measure(ways, texts, given.rounds)


def _model(seed: int) -> tuple[Path, Path]:
    """The model's folder, and what the store makes of it; both are kept."""
    folder, file = BUILT / f"copying-m2m100-{seed}", BUILT / f"copying-m2m100-{seed}.int8"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        copying_model.write(folder, seed)
        packed.pack(folder, file, "int8")
    return folder, file


def _texts(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    known = copying_model.words(seed)
    lengths = np.exp(random.uniform(math.log(2), math.log(100), count)).round().astype(int)
    return [" ".join(random.choice(known, length)) for length in lengths]


Way = Callable[[Sequence[str]], list[str]]


def _ways(folder: Path, unpacked: Path, socket: Path, chosen: Sequence[str]) -> dict[str, Way]:
    fast, plain = CTranslate2Backend(unpacked), CTranslate2Backend(unpacked, replicas=1)
    translator = Translator(unpacked, "cpu", beam_size=1)
    ways: dict[str, Way] = {
        ONE: lambda texts: asyncio.run(_batched(plain, texts)),
        OURS: lambda texts: asyncio.run(_batched(fast, texts)),
        ARRIVAL: lambda texts: _in_order(plain, texts),
        SPREAD: lambda texts: _in_order(fast, texts),
        COUNT: lambda texts: _in_order(fast, texts, most=sizes[-1]),
        BATCH: lambda texts: _some_at_a_time(translator, texts),
        WHOLE: lambda texts: translator.batch(texts, *PAIR),
        MANY: lambda texts: asyncio.run(_clients(socket, texts)),
    }
    if "alone" in chosen:
        from modelyard.servers.translation.transformers_backend import TransformersBackend

        slow = TransformersBackend(folder, "cpu", "float32")
        ways[ALONE] = lambda texts: _in_order(slow, texts, most=1)
    return {way: ways[way] for name, way in NAMES.items() if name in chosen}


sizes = [0]  # texts in one of our batches, on the average


async def _batched(backend: Backend, texts: Sequence[str]) -> list[str]:
    """Each text a request of its own, all at once."""
    made = serving.batching(backend, serving.Options(beam_size=1), lambda _: None)
    asked = (made.translate([backend.segment(text, *PAIR)]) for text in texts)
    found = [output for (output,) in await asyncio.gather(*asked)]
    sizes.append(round(made.counts.segments / made.counts.batches))
    await made.close()
    return [output.text for output in found if isinstance(output, Output)]


def _in_order(backend: Backend, texts: Sequence[str], most: int = 0) -> list[str]:
    """Batches of `most` texts, of as many tokens as fit without."""

    def run(batch: Sequence[Segment]) -> list[str]:
        limit = longest_output(max(map(len, batch)))
        return [output.text for output in backend.run(batch, beam_size=1, max_output=limit)]

    segments = [backend.segment(text, *PAIR) for text in texts]
    batches = (
        [segments[begin : begin + most] for begin in range(0, len(segments), most)]
        if most
        else _full(segments)
    )
    with ThreadPoolExecutor(backend.replicas) as threads:
        return [*chain.from_iterable(threads.map(run, batches))]


def _full(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Those that follow each other, as far as they have `BATCH_TOKENS` tokens, padding included."""
    batch: list[Segment] = []
    for segment in segments:
        if batch and max(map(len, [*batch, segment])) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(segment)
    yield batch


def _some_at_a_time(translator: Translator, texts: Sequence[str]) -> list[str]:
    parts = (texts[begin : begin + CLIENTS] for begin in range(0, len(texts), CLIENTS))
    return [*chain.from_iterable(translator.batch(part, *PAIR) for part in parts)]


async def _clients(socket: Path, texts: Sequence[str]) -> list[str]:
    """Clients that each send one text and wait for it, until all were sent."""
    found = [""] * len(texts)
    waiting = iter(range(len(texts)))
    transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=CLIENTS))

    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=600) as client:

        async def one() -> None:
            for number in waiting:
                body = {"q": texts[number], "source": PAIR[0], "target": PAIR[1]}
                answer = (await client.post("/translate", json=body)).raise_for_status()
                found[number] = answer.json()["translatedText"]

        await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return found


@contextmanager
def _server(file: Path, folder: Path) -> Iterator[Path]:
    socket = folder / "s"
    told = {"address": f"unix:{socket}", "path": str(file), "beam_size": 1}
    words = [sys.executable, "-m", "modelyard.servers.ctranslate2", json.dumps(told)]
    with subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            transport = httpx.HTTPTransport(uds=str(socket), retries=20)
            with httpx.Client(transport=transport, base_url="http://server", timeout=60) as client:
                while client.get("/health").status_code != 200:
                    time.sleep(0.2)
            yield socket
        finally:
            process.terminate()


def _measure(ways: dict[str, Way], texts: Sequence[str], rounds: int) -> None:
    tokens = sum(len(text.split()) for text in texts)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, list[str]] = {}
    for way in ways.values():
        way(texts[:2])  # warms it up
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            said[name] = way(texts)
            speeds[name].append(tokens / (time.perf_counter() - began))
    rows = [
        [name, median_and_spread(speeds[name]), f"{chrf(said[name], texts):.1f}", _exact(said[name], texts)]
        for name in ways
    ]
    pairs = [
        (OURS, ALONE),
        (ONE, ARRIVAL),
        (OURS, SPREAD),
        (OURS, COUNT),
        (OURS, ARRIVAL),
        (MANY, BATCH),
        (MANY, WHOLE),
    ]
    ratios = {
        f"{one} / {other}": [a / b for a, b in zip(speeds[one], speeds[other], strict=True)]
        for one, other in pairs
        if {one, other} <= {*speeds}
    }
    text = table(["", "tokens/s", "chrF", "exact"], rows) + "\n\n"
    text += table(["", "ratio"], [[name, median_and_spread(values)] for name, values in ratios.items()])
    text += (
        f"\n\n{len(texts)} texts, {tokens} tokens, {sizes[-1]} texts in one of our batches, {rounds} rounds"
    )
    values = {"speeds": speeds, "ratios": {name: median(found) for name, found in ratios.items()}}
    report("translation", "Translations, batched and not", text, values)


def _exact(said: Sequence[str], right: Sequence[str]) -> str:
    return f"{mean(one == other for one, other in zip(said, right, strict=True)):.0%}"


def chrf(said: Sequence[str], right: Sequence[str]) -> float:
    """chrF2 of a corpus (Popović 2015): precision and recall of runs of one to six characters, spaces left
    out, recall counting twice; 100 at most."""
    scores = []
    for size in range(1, 7):
        shared = made = wanted = 0
        for one, other in zip(said, right, strict=True):
            mine, its = (_runs(text.replace(" ", ""), size) for text in (one, other))
            shared += (mine & its).total()
            made, wanted = made + mine.total(), wanted + its.total()
        precision, recall = shared / max(made, 1), shared / max(wanted, 1)
        scores.append(5 * precision * recall / max(4 * precision + recall, 1e-9))
    return 100 * mean(scores)


def _runs(text: str, size: int) -> Counter[str]:
    return Counter(text[at : at + size] for at in range(len(text) - size + 1))


if __name__ == "__main__":
    main()
