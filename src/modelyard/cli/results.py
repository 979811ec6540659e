"""What replays and advice came to, as tables for people and as lists for JSON. See `cli/replay.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from modelyard.cli import tables
from modelyard.sim import advise as advising
from modelyard.sim.inputs import Trace
from modelyard.sim.replay import Run, as_json
from modelyard.sim.scene import Load


def as_list(runs: Sequence[Run], fewest: Sequence[int | None], target: float) -> list[dict[str, Any]]:
    return [as_json(run, target, least) for run, least in zip(runs, fewest, strict=True)]


def print_assumed(console: Console, trace: Trace, jobs: Load, assumed: Iterable[str]) -> None:
    seconds = tables.duration(jobs.jobs[-1].at)
    console.print(f"{trace.name}: {len(jobs.jobs):,} requests in {seconds}", markup=False)
    for text in assumed:
        console.print(f"  {text}", markup=False, style="dim")
    console.print()


def print_runs(console: Console, runs: Sequence[Run], fewest: Sequence[int | None], target: float) -> None:
    """What the strategies came to, and what is said of it."""
    console.print(_table(runs, fewest, target))
    if any(least is not None for least in fewest):
        console.print("least: with fewer loads nobody serves the same requests within the same longest wait")
    _print_refusals(console, runs)
    console.print()
    console.print(_memory(runs))


def _table(runs: Sequence[Run], fewest: Sequence[int | None], target: float) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("strategy")
    heads = ["loads", "least", "loaded", "wait p50", "p95", "p99", "max", f"≤ {target:g} s", "refused"]
    for head in heads:
        table.add_column(head, justify="right")
    for run, least in zip(runs, fewest, strict=True):
        waits = [f"{run.wait(share):.2f}" for share in (0.5, 0.95, 0.99, 1.0)]
        table.add_row(
            run.strategy,
            f"{run.loads:,}",
            "-" if least is None else f"{least:,}",
            tables.size(run.bytes_loaded),
            *waits,
            f"{100 * run.within(target):.2f} %",
            f"{run.refused.total():,}",
        )
    return table


def _memory(runs: Sequence[Run]) -> Table:
    """How long each device was held, and how much of it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("strategy")
    devices = [
        device.id for device in runs[0].scene.devices if any(run.peak_memory(device.id) for run in runs)
    ]
    for device in devices:
        for head in (f"{device}: held", "mean", "peak"):
            table.add_column(head, justify="right")
    for run in runs:
        cells = [
            (
                f"{run.held(device):,.0f} s",
                tables.size(round(run.mean_memory(device))),
                tables.size(run.peak_memory(device)),
            )
            for device in devices
        ]
        table.add_row(run.strategy, *(cell for of_device in cells for cell in of_device))
    return table


def _print_refusals(console: Console, runs: Sequence[Run]) -> None:
    for run in runs:
        if run.refused:
            codes = ", ".join(f"{count:,} {code}" for code, count in run.refused.most_common())
            console.print(f"{run.strategy}: refused {codes}", markup=False)
        if run.cuts:
            console.print(f"{run.strategy}: {run.cuts:,} requests were cut at the drain cap", markup=False)


def _difference(count: int) -> str:
    return f"{'+' if count >= 0 else ''}{tables.size(count)}"


def print_advice(console: Console, advice: advising.Advice, target: float) -> None:
    base = advice.base
    console.print(
        f"as configured: {base.loads:,} loads ({tables.size(base.bytes_loaded)}), "
        f"{100 * base.within:.2f} % within {target:g} s, p99 {base.p99:.2f} s, {base.refused:,} refused",
        markup=False,
    )
    console.print()
    if not advice.helpful:
        console.print(f"Nothing that was tried helps ({len(advice.tried)} changes).")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("change")
    for head in ("loads", "loaded", f"≤ {target:g} s", "p99", "refused"):
        table.add_column(head, justify="right")
    for one in advice.helpful:
        gain = one.result
        table.add_row(
            one.change.text,
            f"{gain.loads - base.loads:+,} ({100 * (gain.loads / max(1, base.loads) - 1):+.1f} %)",
            _difference(gain.bytes_loaded - base.bytes_loaded),
            f"{100 * (gain.within - base.within):+.2f} points",
            f"{gain.p99 - base.p99:+.2f} s",
            f"{gain.refused - base.refused:+,}",
        )
    console.print(table)
    rest = len(advice.tried) - len(advice.helpful)
    console.print(f"{rest} other changes were tried and do not help, or not in both halves of the trace.")
    if advice.left:
        console.print(f"{advice.left} more were not tried: --simulations tries more.")
