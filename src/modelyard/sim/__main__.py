"""`python -m modelyard.sim`: the strategies against LRU, on slices of a trace whose density is chosen so that
LRU serves nearly everybody in time, and on one that is too dense for it.

The trace's second half is shown; `--half first` is what the constants were tuned on. All rules are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from pathlib import Path
from statistics import median

from modelyard.sim import inputs
from modelyard.sim.lines import Request
from modelyard.sim.replay import ROUNDING, Run, replay
from modelyard.sim.scene import GB, Rules, Scene, load, synthetic
from modelyard.sim.strategies import ABLATED, BASELINE, OURS, STRATEGIES, Strategy

TRACE = Path("examples/traces/azure_llm_2023_conv.csv.gz")
TARGET = 10.0  # seconds of wait
CASES = ((50, 8), (100, 16))  # models, and how many of the mean size memory holds
CALM = (0.995, 0.999)  # shares that LRU serves within TARGET
SATURATED = (0.74, 0.76)
TRIES = 12  # of a stretch
ALL = {strategy.name: strategy for strategy in (*STRATEGIES.values(), *ABLATED)}


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common. `load_rate`: GB per second; `sizes`: GB."""

    trace: Path = TRACE
    second_half: bool = True
    rows: int = 4000
    sizes: tuple[int, ...] = (8,)
    load_rate: float = 5.0
    one_drive: bool = True

    def scene(self, models: int, fit: int) -> Scene:
        sizes = [size * GB for size in self.sizes]
        names = [f"model-{number}" for number in range(models)]
        memory = fit * sum(sizes) // len(sizes)
        rules = Rules(load_rate=self.load_rate * GB, one_drive=self.one_drive)
        return synthetic(names, memory, sizes=sizes, rules=rules)


@dataclass(frozen=True, slots=True)
class Result:
    """One run, or the medians of some. `fewest`: the lower bound of loads for what was served."""

    strategy: str
    loads: float
    gigabytes: float
    within: float
    refused: float
    waits: tuple[float, ...]
    bound_kept: bool
    fewest: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """A slice at the stretch at which LRU serves a share in `band`, and who is run on it."""

    setting: Setting
    models: int
    fit: int
    seed: int
    band: tuple[float, float]
    names: tuple[str, ...]
    bounded: bool = False


@cache
def rows_of(setting: Setting) -> tuple[Request, ...]:
    """The first rows of the half that is asked for."""
    requests = inputs.read(setting.trace).requests
    first = len(requests) // 2 if setting.second_half else 0
    end = len(requests) if setting.second_half else len(requests) // 2
    return tuple(replace(request, model="") for request in requests[first : min(end, first + setting.rows)])


def run(task: Task, stretch: float, strategy: Strategy) -> Run:
    scene = task.setting.scene(task.models, task.fit)
    trace = inputs.Trace(task.setting.trace.name, "csv", list(rows_of(task.setting)))
    jobs = load(trace, scene, seed=task.seed, skew=1.0, stretch=stretch).jobs
    return replay(scene, jobs, strategy)


def result(made: Run, *, bounded: bool = False) -> Result:
    waited = [record for record in made.records if record.wait]
    kept = all((record.wait or 0.0) <= record.bound + ROUNDING for record in waited)
    waits = tuple(made.wait(share) for share in (0.5, 0.95, 0.99, 1.0))
    fewest = made.fewest_loads() if bounded else 0
    refused, gigabytes = made.refused.total(), made.bytes_loaded / GB
    return Result(made.strategy, made.loads, gigabytes, made.within(TARGET), refused, waits, kept, fewest)


def stretch_for(task: Task) -> float:
    """A stretch at which LRU's share lies in the band, or nearly, by bisection."""
    low, high = 0.25, 32.0
    for _ in range(TRIES):
        stretch = sqrt(low * high)
        share = run(task, stretch, BASELINE).within(TARGET)
        if share < task.band[0]:
            low = stretch
        elif share > task.band[1]:
            high = stretch
        else:
            break
    return stretch


def work(task: Task) -> tuple[Task, float, list[Result]]:
    stretch = stretch_for(task)
    results = [
        result(run(task, stretch, ALL[name]), bounded=task.bounded and name == OURS.name)
        for name in task.names
    ]
    return task, stretch, results


# -- output ------------------------------------------------------------------------------------------------

HEAD = (
    f"{'':28} {'loads':>6} {'/ LRU':>6} {'GB':>7} {'<=10 s':>8} {'p50':>6} {'p95':>6} {'p99':>6} {'max':>6} "
    f"{'refused':>7}  bound"
)


def line(one: Result, base: Result) -> str:
    waits = " ".join(f"{wait:6.2f}" for wait in one.waits)
    fewest = f"  no schedule < {one.fewest} loads" if one.fewest else ""
    return (
        f"  {one.strategy:26} {one.loads:6.0f} {one.loads / base.loads:6.3f} {one.gigabytes:7.0f} "
        f"{one.within:8.2%} {waits} {one.refused:7.0f}  {'kept' if one.bound_kept else 'BROKEN'}{fewest}"
    )


def tell(title: str, done: Iterable[tuple[Task, float, list[Result]]]) -> list[list[Result]]:
    print(f"\n{title}\n{HEAD}")
    kept = []
    for task, stretch, results in done:
        print(f"{task.models} models, memory for {task.fit}, seed {task.seed}: stretch {stretch:.2f}")
        for one in results:
            print(line(one, results[0]), flush=True)
        kept.append(results)
    return kept


def summary(pairs: Sequence[list[Result]]) -> str:
    """Medians of ours against LRU, the first two of each."""
    loads = median(ours.loads / base.loads for base, ours, *_ in pairs)
    share = median(ours.within - base.within for base, ours, *_ in pairs)
    slower = median(ours.waits[2] - base.waits[2] for base, ours, *_ in pairs)
    level = sum(ours.within >= base.within for base, ours, *_ in pairs)
    refused = sum(ours.refused - base.refused for base, ours, *_ in pairs)
    kept = "kept everywhere" if all(ours.bound_kept for _, ours, *_ in pairs) else "BROKEN"
    return (
        f"ours against LRU, medians of {len(pairs)}: loads x {loads:.3f}, share {100 * share:+.2f} points "
        f"(no less in {level}), p99 {slower:+.2f} s, {refused:+.0f} refused, stated bound {kept}"
    )


def rules(setting: Setting) -> str:
    half, many = ("second" if setting.second_half else "first"), len(rows_of(setting))
    sizes = ", ".join(map(str, setting.sizes))
    return (
        f"{setting.trace.name}, {many} rows from the start of its {half} half; models by Zipf's law "
        f"(exponent 1)\n{setting.scene(50, 8).rules}\nmodels of {sizes} GB by turns, 8 slots each; times "
        f"stretched until LRU serves {CALM[0]:.1%} to {CALM[1]:.1%} within {TARGET:g} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modelyard.sim", description="Strategies against LRU.")
    parser.add_argument("--trace", type=Path, default=TRACE, help="a CSV of time, input and output tokens")
    parser.add_argument("--half", choices=("first", "second"), default="second")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--sizes", default="8", help="GB of the models, by turns")
    parser.add_argument("--load-rate", type=float, default=5.0, help="GB per second")
    parser.add_argument("--many-drives", action="store_true", help="loads do not slow each other down")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--brief", action="store_true", help="LRU and ours alone")
    options = parser.parse_args()
    sizes = tuple(int(size) for size in options.sizes.split(","))
    setting = Setting(
        options.trace,
        options.half == "second",
        options.rows,
        sizes,
        options.load_rate,
        not options.many_drives,
    )
    print(rules(setting))
    seeds, pair = range(1, options.seeds + 1), (BASELINE.name, OURS.name)
    others = tuple(name for name in ALL if name not in pair)
    calm = [Task(setting, *case, seed, CALM, pair, not options.brief) for case in CASES for seed in seeds]
    dense = [Task(setting, *case, seed, SATURATED, pair) for case in CASES for seed in seeds]
    every = [Task(setting, *case, 1, CALM, (*pair, *others)) for case in CASES]
    with ProcessPoolExecutor(options.processes) as pool:
        first = tell("Nearly all in time", pool.map(work, calm))
        print(summary(first), flush=True)
        second = tell("Too dense for LRU", pool.map(work, dense))
        print(summary(second), flush=True)
        if not options.brief:
            tell("Everyone, and each term's worth", pool.map(work, every))


if __name__ == "__main__":
    main()
