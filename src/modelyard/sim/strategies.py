"""Strategies by name: each is the real scheduler with another policy and another order of victims.

Used by `modelyard replay` and by `python -m modelyard.sim`; nothing else than the scheduler decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from modelyard.core.scheduler import Scheduler
from modelyard.core.state import Instance, Rank, loss
from modelyard.core.types import Policy
from modelyard.sim.choices import StrategyName


@dataclass(frozen=True, slots=True)
class Strategy:
    """`changes` are the fields of a version's policy that it sets; the rest as in `Scheduler`."""

    name: str
    text: str
    changes: tuple[tuple[str, float], ...] = ()
    rank: Rank = loss
    holds: bool = False
    paced: bool = False

    def scheduler(self, queue_bound: int) -> Scheduler:
        return Scheduler(queue_bound, self.rank, holds=self.holds, paced=self.paced)

    def policy(self, policy: Policy) -> Policy:
        """`policy` as this strategy has it."""
        return replace(policy, **dict(self.changes))  # type: ignore[arg-type]


def last_used(instance: Instance, now: float) -> float:
    return instance.version.last_used


def idle_since(instance: Instance, now: float) -> float:
    return instance.idle_since


def started_at(instance: Instance, now: float) -> float:
    return instance.started_at


def _demand(instance: Instance, now: float) -> float:
    return instance.version.heat_now(now) + instance.version.queue.count


def _without_load(instance: Instance, now: float) -> float:
    return _demand(instance, now) / max(1, instance.bytes)


def _without_bytes(instance: Instance, now: float) -> float:
    return _demand(instance, now) * instance.version.usual_load()


def _without_queue(instance: Instance, now: float) -> float:
    version = instance.version
    return version.heat_now(now) * version.usual_load() / max(1, instance.bytes)


AT_ONCE = (("patience", 0.0), ("min_residency", 0.0), ("keep_alive", inf))
WITHOUT_END = (("patience", inf), ("min_residency", 0.0), ("keep_alive", inf))

_TABLE = (
    Strategy(
        StrategyName.FIRST_COME,
        "the head of the line takes the memory of the oldest instance",
        AT_ONCE,
        started_at,
    ),
    Strategy(
        StrategyName.LRU,
        "requests grouped per ready version; the least recently used idle version leaves, busy ones never",
        WITHOUT_END,
        last_used,
    ),
    Strategy(
        StrategyName.READY_FIRST,
        "as llama-swap: ready versions pass without a bound; the oldest idle instance leaves",
        WITHOUT_END,
        started_at,
    ),
    Strategy(
        StrategyName.OLDEST_IDLE,
        "as Ollama: who has been idle longest leaves; when all are busy, one drains at once",
        AT_ONCE,
        idle_since,
    ),
    Strategy(
        StrategyName.LRU_WITH_PATIENCE,
        "LRU, but a busy version drains once the head of the line waited its patience",
        (("keep_alive", inf),),
        last_used,
    ),
    Strategy(StrategyName.OURS, "the policy as configured", holds=True, paced=True),
)
STRATEGIES = {strategy.name: strategy for strategy in _TABLE}
OURS, BASELINE = STRATEGIES[StrategyName.OURS], STRATEGIES[StrategyName.LRU]

ABLATED = (
    replace(OURS, name="ours without the hold", holds=False),
    replace(OURS, name="ours without pace", paced=False),
    replace(OURS, name="ours without demand", rank=last_used),
    replace(OURS, name="ours without load time", rank=_without_load),
    replace(OURS, name="ours without bytes", rank=_without_bytes),
    replace(OURS, name="ours without the queue", rank=_without_queue),
    replace(OURS, name="ours without patience", changes=(("patience", 0.0),)),
)
"""Ours with one term taken away each."""
