"""`python -m modelyard.sim`: replay a trace on virtual time, once per strategy, and print the table.

Every strategy is the real scheduler with another policy; nothing else decides.
"""

from __future__ import annotations

import argparse
from math import ceil, inf
from pathlib import Path

from modelyard.core import events as ev
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Device, DeviceKind, Need, Policy, Share, Spec
from modelyard.sim.traces import assign, read_trace
from modelyard.sim.world import Job, World

GB = 10**9
TRACE = Path("examples/traces/azure_llm_2023_conv.csv.gz")
SIZES = (2, 4, 8, 16)  # GB, by turns
LOAD_RATE = 2 * GB  # bytes per second
LOAD_FIXED = 1.0  # seconds
STOP = 0.3
SLOTS = 8

STRATEGIES = {
    "ours": Policy(),
    "first come": Policy(patience=0.0, min_residency=0.0),
    "ready ones pass, no bound": Policy(patience=inf),
}
RULES = f"""\
service: 0.2 ms per context token + 10 ms per generated token, {SLOTS} slots per model
load: {LOAD_FIXED:g} s + bytes at {LOAD_RATE / GB:g} GB/s; stop: {STOP:g} s
models: sizes of {", ".join(map(str, SIZES))} GB by turns, asked for by Zipf's law
ours: patience {Policy().patience:g} s; first come: patience 0; no bound: patience without end"""


def replay(jobs: list[Job], models: int, memory: int, policy: Policy) -> World:
    """One strategy over all jobs, from empty memory to the last answer."""
    sizes = {version(number): SIZES[number % len(SIZES)] * GB for number in range(models)}
    world = World(Scheduler(), load=lambda v: LOAD_FIXED + sizes[v] / LOAD_RATE, stop=lambda _: STOP)
    world.post(ev.DeviceAdded(Device("gpu0", DeviceKind.DECLARED, memory, memory)))
    for number in range(models):
        need = Need((Share("accelerator", sizes[version(number)]),))
        world.post(ev.Added(spec(number), policy, need))
    world.submit(jobs)
    world.run()
    return world


def spec(number: int) -> Spec:
    return Spec(f"model-{number}", "0" * 12, "fake", slots=SLOTS)


def version(number: int) -> str:
    return spec(number).version


def percentile(ordered: list[float], share: float) -> float:
    """The nearest-rank percentile of a sorted list, 0 for an empty one."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0


def line(name: str, world: World) -> str:
    waits = sorted(record.wait for record in world.records.values() if record.wait is not None)
    refused = sum(1 for record in world.records.values() if record.refused)
    cells = [f"{percentile(waits, share):8.2f}" for share in (0.5, 0.95, 0.99, 1.0)]
    loaded = world.bytes_loaded / GB
    return f"{name:26} {world.loads:6} {loaded:10.0f} {' '.join(cells)} {refused:8}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modelyard.sim", description="Replay a trace.")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--models", type=int, default=12)
    parser.add_argument("--memory", type=float, default=40.0, help="GB of the one device")
    parser.add_argument("--skew", type=float, default=1.0, help="Zipf's exponent")
    parser.add_argument("--stretch", type=float, default=4.0, help="the trace's times are multiplied by it")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = [version(number) for number in range(options.models)]
    rows = read_trace(options.trace, options.requests)
    jobs = assign(rows, names, seed=options.seed, skew=options.skew, stretch=options.stretch)
    print(f"trace: {options.trace.name}, {len(jobs)} requests in {jobs[-1].at:.0f} s, seed {options.seed}")
    print(
        f"{options.models} models, {options.memory:g} GB, skew {options.skew:g}, stretch {options.stretch:g}"
    )
    print(RULES)
    print()
    head = " ".join(f"{name:>8}" for name in ("wait p50", "p95", "p99", "max s"))
    print(f"{'strategy':26} {'loads':>6} {'GB loaded':>10} {head} {'refused':>8}")
    for name, policy in STRATEGIES.items():
        print(line(name, replay(jobs, options.models, int(options.memory * GB), policy)), flush=True)


if __name__ == "__main__":
    main()
