"""Plans of one yard: made by `core/plan.py`, the last KEPT of them kept here under their ids. A client names
a plan and sends none, so nobody can have anything done that was not planned here.

The dry run, which may take a second under a long queue, is made in a thread, on a copy. Before a plan is
carried out it is checked whole in the same way; then what it rests on and what is decided at once are checked
again, in the turn of the event loop that carries it out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from statistics import median

from modelyard.config import Config
from modelyard.core import events as ev
from modelyard.core.copying import copy_of
from modelyard.core.outlook import USUAL_STOP
from modelyard.core.plan import Broken, Plan, changed, plan
from modelyard.errors import PlanNotFound, PlanStale
from modelyard.runtime.driver import Driver

KEPT = 32
TOLD = 5  # changes that a refusal names


@dataclass(frozen=True, slots=True)
class Kept:
    """A plan with the order that it is of, for people: `load big`. One of a configuration has its file and
    what that said, since not all of it is events."""

    order: str
    plan: Plan
    path: Path | None = None
    config: Config | None = None
    id: str = field(default_factory=lambda: f"plan-{token_hex(8)}")


class Plans:
    """Makes plans of one yard, keeps the last of them, and says whether one still holds."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._one_at_a_time = asyncio.Semaphore(1)  # each holds copies of the scheduler

    async def make(self, order: str, events: Sequence[ev.Event]) -> Kept:
        """What these events would do now."""
        return self.keep(Kept(order, await self.dry_run(events)))

    async def dry_run(self, events: Sequence[ev.Event]) -> Plan:
        """What these events would do now; not kept."""
        stop = self._usual_stop()
        async with self._one_at_a_time:
            still, now = copy_of(self._driver.scheduler), asyncio.get_running_loop().time()
            return await asyncio.to_thread(plan, still, events, now, stop=stop)

    def keep(self, kept: Kept) -> Kept:
        """Keep a plan as the last one."""
        self._kept[kept.id] = kept
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return kept

    async def take(self, name: str) -> Kept:
        """As `check`, and it is not kept any more."""
        kept = await self.check(name)
        self.drop(name)
        return kept

    def drop(self, name: str) -> None:
        """Keep it no more: it was carried out."""
        self._kept.pop(name, None)

    async def check(self, name: str) -> Kept:
        """A plan that holds, if it is carried out before anything is awaited. Raises PlanNotFound, and
        PlanStale with what has changed."""
        async with self._one_at_a_time:
            still, now = copy_of(self._driver.scheduler), asyncio.get_running_loop().time()
            kept = self.find(name)
            _refuse_stale(name, kept, await asyncio.to_thread(changed, kept.plan, still, now))
        kept, now = self.find(name), asyncio.get_running_loop().time()
        _refuse_stale(name, kept, changed(kept.plan, self._driver.scheduler, now, later=False))
        return kept

    def find(self, name: str) -> Kept:
        """A plan that is kept. Raises PlanNotFound."""
        kept = self._kept.get(name)
        if kept is None:
            raise PlanNotFound(
                f"There is no plan {name}: it was carried out already, or {KEPT} others were made since, or "
                "the server was restarted. Plan again."
            )
        return kept

    def _usual_stop(self) -> float:
        """Seconds from a stop to the return of its memory, from the stops that the last notes tell of."""
        left: dict[str, float] = {}
        took = []
        for at, note in self._driver.notes.kept:
            if note.kind == "leave" and dict(note.fields).get("running") == 0:
                left[note.subject] = at
            elif note.kind == "gone" and note.subject in left:
                took.append(at - left.pop(note.subject))
        return median(took) if took else USUAL_STOP


def _refuse_stale(name: str, kept: Kept, changes: Sequence[Broken]) -> None:
    if changes:
        told = "; ".join(str(change) for change in changes[:TOLD])
        more = f"; and {len(changes) - TOLD} more" if len(changes) > TOLD else ""
        raise PlanStale(f"{name} ({kept.order}) no longer holds: {told}{more}. Nothing was done.")
