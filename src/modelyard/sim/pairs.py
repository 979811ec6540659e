"""`python -m modelyard.sim.pairs`: translation models that do not all fit, and clients with mixed pairs.

Each request is routed at its arrival, by the router and the scheduler's state of that moment, as the gateway
does it; then the scheduler groups requests by model. Against it: first come, first served, by the same router
and by the first model of the list that has the pair; and strict order, in which nobody passes anybody. All
rules are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from modelyard.core import events as ev
from modelyard.core.admission import expected
from modelyard.core.languages import Pairs, name_of, pair_of
from modelyard.core.routing import Candidate, Rules, routes
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Device, DeviceKind, Need, Policy, Share, Spec
from modelyard.sim.choices import StrategyName
from modelyard.sim.replay import ROUNDING, percentile
from modelyard.sim.scene import GB
from modelyard.sim.scene import Rules as Durations
from modelyard.sim.strategies import STRATEGIES, Strategy
from modelyard.sim.world import Job, World

SIZE = 1 * GB
TOKENS = 16  # of an answer at most
# What each of the models translates: nothing twice, or most of it.
APART = (("en-fr", "fr-en"), ("en-de", "de-en"), ("es-it", "it-es"))
SHARED = (("en-fr", "fr-en", "en-de"), ("en-de", "de-en", "es-it"), ("es-it", "it-es", "en-fr"))


@dataclass(frozen=True, slots=True)
class Ask:
    """One text to translate, of so many tokens, at `at` seconds."""

    at: float
    source: str
    target: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """`waits` ascending, in seconds; `wrong`: requests of a model without their pair."""

    loads: int
    waits: tuple[float, ...]
    refused: int
    wrong: int
    bound_kept: bool


def asks(*, seed: int, rate: float, seconds: float, pairs: Sequence[str]) -> list[Ask]:
    """Arrivals at random, so many a second, with lengths of 2 to 16 tokens; the first pair is the most usual
    one (Zipf's law)."""
    dice, at, made = Random(seed), 0.0, []
    weights = [1.0 / place for place in range(1, len(pairs) + 1)]
    while (at := at + dice.expovariate(rate)) < seconds:
        source, target = pair_of(dice.choices(pairs, weights)[0])
        made.append(Ask(at, source, target, dice.randint(2, TOKENS)))
    return made


def run(
    wanted: Sequence[Ask],
    models: Sequence[Sequence[str]],
    fit: int,
    strategy: Strategy,
    *,
    routed: bool = True,
    slots: int = 8,
) -> Outcome:
    """Serve all, with memory for `fit` of the models; without `routed` by the first that has the pair."""
    rules = Durations()
    need = Need((Share("accelerator", SIZE),))
    specs = [Spec(f"m{number}", "0" * 12, "fake", slots=slots) for number in range(len(models))]
    pairs = {
        spec.version: Pairs(frozenset(map(pair_of, each))) for spec, each in zip(specs, models, strict=True)
    }
    world = World(strategy.scheduler(len(wanted)), load=lambda _: rules.load(need), stop=lambda _: rules.stop)
    world.post(ev.DeviceAdded(Device("gpu0", DeviceKind.DECLARED, fit * SIZE, fit * SIZE)))
    policy = strategy.policy(Policy(queue_bound=len(wanted)))
    for spec in specs:
        world.post(ev.Added(spec, policy, need))
    wrong = 0
    for ask in wanted:
        world.run(ask.at)
        world.now = max(world.now, ask.at)
        version = _route(world.scheduler, pairs, ask, world.now if routed else None)
        wrong += (ask.source, ask.target) not in pairs[version]
        service = rules.per_token_in * ask.tokens + rules.per_token_out * ask.tokens
        world.submit([Job(ask.at, version, service)])
    world.run()
    records = list(world.records.values())
    served = [record.wait for record in records if record.wait is not None and record.finished_at is not None]
    return Outcome(
        world.loads,
        tuple(sorted(served)),
        len(records) - len(served),
        wrong,
        all((record.wait or 0.0) <= record.bound + ROUNDING for record in records),
    )


def in_order(wanted: Sequence[Ask], models: Sequence[Sequence[str]], fit: int) -> int:
    """The loads of serving one after the other as they came, by the first model that has the pair; the least
    recently used one leaves."""
    memory: dict[int, None] = {}
    loads = 0
    for ask in wanted:
        pair = name_of((ask.source, ask.target))
        model = next(number for number, each in enumerate(models) if pair in each)
        if model in memory:
            del memory[model]
        else:
            loads += 1
            if len(memory) == fit:
                del memory[next(iter(memory))]
        memory[model] = None
    return loads


def _route(scheduler: Scheduler, pairs: dict[str, Pairs], ask: Ask, now: float | None) -> str:
    """The version that is asked: at this moment, or whenever it is."""
    if now is None:
        return next(version for version, each in pairs.items() if (ask.source, ask.target) in each)
    candidates = []
    for key, each in pairs.items():
        version = scheduler.state.versions[key]
        load, wait = expected(scheduler.state, scheduler.sums, version, now)
        candidates.append(Candidate(key, each, ready=bool(version.ready), load_seconds=load, wait=wait))
    return routes(candidates, ask.source, ask.target, Rules())[0].steps[0].model


CONTESTANTS = (
    ("first come, the first model that has it", STRATEGIES[StrategyName.FIRST_COME], False),
    ("first come, routed", STRATEGIES[StrategyName.FIRST_COME], True),
    ("ours", STRATEGIES[StrategyName.OURS], True),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modelyard.sim.pairs", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=24.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=300.0, help="of arrivals")
    options = parser.parse_args()
    print(f"3 models of 1 GB, 8 slots each; {Durations()}")
    for title, models in (("no pair twice", APART), ("pairs of several models", SHARED)):
        pairs = sorted({name_of(pair_of(pair)) for each in models for pair in each})
        wanted = asks(seed=options.seed, rate=options.rate, seconds=options.seconds, pairs=pairs)
        print(
            f"\n{title}: {len(wanted)} requests in {options.seconds:g} s, by Zipf's law, seed {options.seed}"
        )
        for fit in (1, 2, 3):
            print(f"  memory for {fit}  {'strict order':40} {in_order(wanted, models, fit):5} loads")
            for name, strategy, routed in CONTESTANTS:
                made = run(wanted, models, fit, strategy, routed=routed)
                waits = " ".join(f"{percentile(made.waits, share):6.2f}" for share in (0.5, 0.95, 1.0))
                kept = "kept" if made.bound_kept else "BROKEN"
                print(
                    f"  memory for {fit}  {name:40} {made.loads:5} loads  waits p50, p95, max {waits} s  "
                    f"refused {made.refused}  bound {kept}"
                )


if __name__ == "__main__":
    main()
