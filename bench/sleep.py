"""Sleep on the CPU: an answer of a process that wakes against one of a process that starts, of a large model.

Run as `python bench/run.py sleep`. Both are the Transformers server with a causal model of random weights in
16 bits, whose files are in the page cache. They take turns: while the kept one sleeps, a new one starts,
answers and ends. Times are from the start of the process, or the order to wake, to the first token over HTTP.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from measuring import ROOT, median_and_spread, report, table

sys.path.insert(0, str(ROOT / "tests"))

from e2e import large_model
from e2e.heavy import PYTHON
from waiting import DEADLINE

BOUND = 5.0  # times faster than a cold start
TOKENS = 16
LONGEST = 600.0
PROMPT = "The sea is"


def measure(rounds: int) -> None:
    """Print the table; say why where it cannot be run here."""
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as name:
        if reason := large_model.no_room(Path(name)):
            print(f"sleep was left out: {reason}")
            return
        folder = Path(name) / "model"
        large_model.write(folder)
        values = _measure(folder, Path(name), rounds)
    _report(values, rounds)


def _measure(folder: Path, work: Path, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}

    def keep(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    with _server(folder, work / "kept") as kept:
        said = _text(kept, TOKENS)
        for _ in range(rounds):
            before = _own(kept)
            asleep = kept.post("/sleep")
            left = _own(kept)
            keep(sleep=asleep["seconds"], freed=1 - left / before, bytes=asleep["bytes"])
            _read(folder)
            start = time.perf_counter()
            with _server(folder, work / "new") as new:
                _text(new, 1)
                keep(cold=time.perf_counter() - start)
                keep(rate=_rate(new))
            start = time.perf_counter()
            kept.post("/wake")
            keep(woken=time.perf_counter() - start)
            _text(kept, 1)
            keep(wake=time.perf_counter() - start)
            keep(rate_first=_rate(kept))
            while _own(kept) < left + 0.98 * asleep["bytes"]:
                if time.perf_counter() - start > LONGEST:
                    raise RuntimeError("its memory does not become its own")
                time.sleep(0.02)
            keep(own=time.perf_counter() - start, rate_then=_rate(kept))
            keep(same=float(_text(kept, TOKENS) == said))
            latest = (f"{name} {values[-1]:.4g}" for name, values in found.items())
            print(f"sleep: {', '.join(latest)}", file=sys.stderr, flush=True)
    return found


class _Server:
    def __init__(self, client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
        self.client, self.process = client, process

    def post(self, path: str, **body: object) -> dict[str, float]:
        answer = self.client.post(path, json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{path}: {answer.status_code}: {answer.text}")
        return dict(answer.json())


@contextmanager
def _server(folder: Path, socket: Path) -> Iterator[_Server]:
    """A process that has begun to start; requests wait for its model."""
    told = {"address": f"unix:{socket}", "model": "m", "path": str(folder), "context": 1024}
    told |= {"dtype": "bfloat16", "sleep_folder": str(socket.parent)}
    argv = [str(PYTHON), "-m", "modelyard.servers.transformers", json.dumps(told)]
    with socket.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    transport = httpx.HTTPTransport(uds=str(socket))
    try:
        with httpx.Client(transport=transport, base_url="http://m", timeout=LONGEST) as client:
            ends = time.monotonic() + LONGEST
            while not _healthy(client):
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(socket.with_suffix(".log").read_text()[-2000:])
                time.sleep(0.01)
            yield _Server(client, process)
    finally:
        process.kill()
        process.wait(DEADLINE)


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def _text(server: _Server, tokens: int) -> object:
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return server.post("/v1/completions", **body)["choices"]


def _rate(server: _Server) -> float:
    """Tokens a second of one answer."""
    start = time.perf_counter()
    _text(server, TOKENS)
    return TOKENS / (time.perf_counter() - start)


def _own(server: _Server) -> float:
    """The private memory of its process, in bytes."""
    with open(f"/proc/{server.process.pid}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


def _read(folder: Path) -> None:
    """Have the model's files in the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _report(found: dict[str, list[float]], rounds: int) -> None:
    ratios = [cold / wake for cold, wake in zip(found["cold"], found["wake"], strict=True)]
    rows = [
        ["a new process, s", median_and_spread(found["cold"])],
        ["a process that wakes, s", median_and_spread(found["wake"])],
        ["times faster, within a round", median_and_spread(ratios)],
        ["to fall asleep, s", median_and_spread(found["sleep"])],
        ["of its private memory freed, %", median_and_spread([100 * one for one in found["freed"]])],
        ["all of it its own again after a wake, s", median_and_spread(found["own"])],
        [f"tokens/s: {TOKENS} in a new process", median_and_spread(found["rate"])],
        [f"tokens/s: the {TOKENS} after the first of a wake", median_and_spread(found["rate_first"])],
        [f"tokens/s: {TOKENS} once its memory is its own", median_and_spread(found["rate_then"])],
    ]
    held = statistics.median(ratios) >= BOUND and min(found["freed"]) >= 0.8
    note = (
        f"\n\nMedian (smallest-largest) of {rounds} rounds in which both take turns. A wake "
        f"{'is' if held else 'IS NOT'} at least {BOUND:g} times faster than a start, with at least 80 % "
        f"freed; the same {TOKENS} tokens in {sum(found['same']):.0f} of {rounds} wakes."
    )
    size = f"{found['bytes'][0] / 1e9:.1f} GB of weights, {psutil.cpu_count()} cores"
    values = {"found": found, "ratios": ratios, "held": held}
    report("sleep", f"Sleep on the CPU: {size}", table(["to the first token", ""], rows) + note, values)
