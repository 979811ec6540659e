"""`/admin/plan` and `/admin/apply-plan`: what an order would do, and doing exactly that.

Wired by `gateway/admin.py`. A plan is made by `core/plan.py` and kept here under its id, the last KEPT of
them: a client names a plan and sends none, so nobody can have anything done that was not planned here.

The dry run, which may take a second under a long queue, is made in a thread, on a copy. Before a plan is
carried out it is checked whole in the same way; then what it rests on and what is decided at once are checked
again, in the turn of the event loop that carries it out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from statistics import median
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Body, Response
from pydantic import Field, model_validator

from modelyard.config import Config
from modelyard.core import events as ev
from modelyard.core.copying import copy_of
from modelyard.core.dryrun import Does
from modelyard.core.outlook import Estimates
from modelyard.core.plan import Broken, Plan, changed, plan
from modelyard.core.types import OutcomeKind, Priority
from modelyard.errors import (
    ConfigRefused,
    InvalidRequest,
    ModelNotFound,
    ModelyardError,
    NotRunning,
    PlanNotFound,
    PlanStale,
    QueueFull,
    RestartNeeded,
    UnsupportedMediaType,
    WaitTooLong,
)
from modelyard.gateway import follow, views
from modelyard.gateway.live import Applied, LiveConfig
from modelyard.gateway.names import Names
from modelyard.gateway.reference import STARTING, refusals
from modelyard.runtime.driver import Driver
from modelyard.runtime.journal_records import Ended

log = structlog.get_logger(__name__)

KEPT = 32
TOLD = 5  # changes that a refusal names
KIND = "plan"  # of a planned request, in the journal
STOP_ALLOWANCE = 10.0  # seconds for TERM, KILL and the shim, on top of drain and release caps


@dataclass(frozen=True, slots=True)
class Kept:
    """A plan with the order that it is of, for people: `load big`. One of a configuration has its file and
    what that said: not all of it is events, so two of them may be the same `plan` and differ in `id`."""

    id: str
    order: str
    plan: Plan
    path: Path | None = None
    config: Config | None = None


class Plans:
    """Makes plans of one yard, keeps the last of them, and says whether one still holds."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._one_at_a_time = asyncio.Semaphore(1)  # each holds copies of the scheduler

    async def make(self, order: str, events: Sequence[ev.Event]) -> Kept:
        """What these events would do now."""
        made = await self.dry_run(events)
        return self.keep(Kept(made.id, order, made))

    async def dry_run(self, events: Sequence[ev.Event]) -> Plan:
        """What these events would do now; not kept."""
        estimates = Estimates(stop=self._usual_stop())
        async with self._one_at_a_time:
            still, now = copy_of(self._driver.scheduler), asyncio.get_running_loop().time()
            return await asyncio.to_thread(plan, still, events, now, estimates=estimates)

    def keep(self, kept: Kept) -> Kept:
        """Keep a plan as the last one."""
        self._kept[kept.id] = kept
        self._kept.move_to_end(kept.id)
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
        return median(took) if took else Estimates().stop


def _refuse_stale(name: str, kept: Kept, changes: Sequence[Broken]) -> None:
    if changes:
        told = "; ".join(str(change) for change in changes[:TOLD])
        more = f"; and {len(changes) - TOLD} more" if len(changes) > TOLD else ""
        raise PlanStale(f"{name} ({kept.order}) no longer holds: {told}{more}. Nothing was done.")


# -- shapes ---------------------------------------------------------------------------------------------


class PlanLoad(views.Order):
    model: str
    evict: bool = Field(default=True, description="Put others out for it; false: only in free memory.")


class PlanUnload(views.Order):
    model: str
    now: bool = Field(default=False, description="Cut what runs.")


class PlanRequest(views.Order):
    model: str
    priority: Literal["low", "normal", "high"] | None = Field(default=None, description="Else its model's.")
    max_wait: float | None = Field(default=None, ge=0, description="Seconds; else its model's.")


class PlanConfig(views.Order):
    path: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="A file on the server's machine; none: the one that is served, read again."
    )

    @property
    def file(self) -> Path | None:
        return Path(self.path) if self.path else None


class PlanOrder(views.Order):
    """One of these."""

    load: PlanLoad | None = None
    unload: PlanUnload | None = None
    request: PlanRequest | None = None
    config: PlanConfig | None = None

    @model_validator(mode="after")
    def _is_one(self) -> PlanOrder:
        if sum(part is not None for part in (self.load, self.unload, self.request, self.config)) != 1:
            raise ValueError("name one of load, unload, request, config")
        return self


class PlannedStep(views.View):
    at: float = Field(description="Seconds from now, as expected from history.")
    does: Does
    model: str
    version: str
    instance: str | None = Field(description="null for one that the plan starts.")
    memory: dict[str, int] = Field(description="Bytes by device.")
    reason: str
    winner: str | None = Field(serialization_alias="for", description="The model that it makes room for.")
    code: str | None = Field(description="The error that somebody is refused or cut with.")
    requests: int = Field(description="How many are refused or cut, or finish first.")
    seconds: float = Field(description="How long it takes, as expected.")
    score: dict[str, str | float] = Field(description="Why this one leaves, and who costs more.")


class PlannedOn(views.View):
    name: str
    value: str = Field(description="The plan holds while it is this.")
    note: str = Field(description="Numbers behind it, which may change.")


class PlannedMemory(views.View):
    device: str
    name: str
    budget: int
    reserved: dict[Literal["before", "after"], int]
    free: dict[Literal["before", "after"], int]


class PlanView(views.View):
    """What an order would do."""

    id: str
    order: str
    steps: list[PlannedStep] = Field(
        description="In order, as far as it looked ahead: `open` says where that ended."
    )
    preconditions: list[PlannedOn]
    memory: list[PlannedMemory]
    seconds: float = Field(description="Until the last step, as expected.")
    open: list[str] = Field(description="What cannot be known yet, in words.")


class ApplyOrder(views.Order):
    id: str = Field(description="Of a plan.")
    wait: bool = Field(
        default=True,
        description="Answer when it is done, or with what stood in the way. A request is always waited for.",
    )


class PlanApplied(views.View):
    id: str
    order: str
    done: bool = Field(description="False when it goes on.")
    instance: str | None = Field(description="That is ready, or had a slot for the request.")
    seconds: float


def view_of(kept: Kept) -> PlanView:
    said: dict[str, Any] = kept.plan.to_json() | {"id": kept.id}
    steps = [PlannedStep(winner=step.pop("for"), **step) for step in said.pop("steps")]
    return PlanView(order=kept.order, steps=steps, **said)


# -- routes ---------------------------------------------------------------------------------------------


def add_plans(router: APIRouter, driver: Driver, names: Names, live: LiveConfig, plans: Plans) -> None:
    refused = (ConfigRefused, RestartNeeded, UnsupportedMediaType)

    @router.post("/plan", tags=["plans"], responses=refusals(ModelNotFound, InvalidRequest, *refused))
    async def make(order: Annotated[PlanOrder, Body()]) -> PlanView:
        """What a load, an unload, a request or another configuration would do now, in order, and what that
        rests on. Nothing is changed."""
        if order.config is not None:
            _, made = await apply_config(live, plans, order.config.file, dry_run=True)
            assert made is not None
            return view_of(made)
        return view_of(await plans.make(*_events(order, names)))

    @router.post(
        "/apply-plan",
        tags=["plans"],
        responses={
            202: {"model": PlanApplied, "description": "It goes on."},
            **refusals(
                *(PlanStale, PlanNotFound, QueueFull, WaitTooLong, NotRunning, InvalidRequest),
                *refused,
                *STARTING,
            ),
        },
    )
    async def apply(response: Response, order: Annotated[ApplyOrder, Body()]) -> PlanApplied:
        """Carry out a plan exactly, or say what it rests on and is different now."""
        began = asyncio.get_running_loop().time()
        kept = plans.find(order.id)
        if kept.path is not None:
            await _serve_as_planned(live, plans, order.id, kept.path)
            seconds = asyncio.get_running_loop().time() - began
            return PlanApplied(id=order.id, order=kept.order, done=True, instance=None, seconds=seconds)
        kept = await plans.take(order.id)
        done, instance = await _carry_out(driver, kept.plan, wait=order.wait)
        response.status_code = 200 if done else 202
        seconds = asyncio.get_running_loop().time() - began
        return PlanApplied(id=order.id, order=kept.order, done=done, instance=instance, seconds=seconds)


async def apply_config(
    live: LiveConfig, plans: Plans, path: Path | None, *, dry_run: bool
) -> tuple[Applied, Kept | None]:
    """Serve another configuration, or only say what would change; with the plan of it, made before. The plan
    of a dry run is kept. A change needs none: it goes on without one that could not be made."""
    made: list[Kept] = []

    async def tell(source: Path, config: Config, event: ev.Changed) -> None:
        try:
            found = await plans.dry_run([event])
            made.append(Kept(f"plan-{token_hex(8)}", f"serve {source}", found, source, config))
        except Exception:
            if dry_run:
                raise
            log.exception("plan.failed")

    applied = await live.apply(path, dry_run=dry_run, before=tell)
    if dry_run:
        plans.keep(made[0])
    return applied, made[0] if made else None


async def _serve_as_planned(live: LiveConfig, plans: Plans, name: str, path: Path) -> None:
    async def holds(source: Path, config: Config, event: ev.Changed) -> None:
        kept = plans.find(name)
        if kept.config != config or kept.plan.events != (event,):
            raise PlanStale(
                f"{name} ({kept.order}) no longer holds: what {source} says, or what is served, has changed. "
                "Nothing was done."
            )
        await plans.check(name)

    await live.apply(path, dry_run=False, before=holds)
    plans.drop(name)


def _events(order: PlanOrder, names: Names) -> tuple[str, list[ev.Event]]:
    """The order in words, and as events."""
    if order.load is not None:
        spec = names.resolve(order.load.model).spec
        return f"load {spec.model}", [ev.LoadAsked(spec.version, order.load.evict)]
    if order.unload is not None:
        spec = names.resolve(order.unload.model).spec
        return f"unload {spec.model}", [ev.UnloadAsked(spec.version, now=order.unload.now)]
    assert order.request is not None
    spec = names.resolve(order.request.model).spec
    asked = order.request.priority
    priority = Priority[asked.upper()] if asked is not None else None
    return f"request {spec.model}", [ev.Arrived("planned", spec.version, priority, order.request.max_wait)]


async def _carry_out(driver: Driver, made: Plan, *, wait: bool) -> tuple[bool, str | None]:
    """Post the event of a plan that was just found to hold, before anything is awaited. Whether it is done,
    and the instance that serves."""
    (event,) = made.events
    match event:
        case ev.LoadAsked(key, evict):
            instance = await driver.load(key, evict=evict, wait=wait)
            return instance is not None, instance
        case ev.UnloadAsked(key, _, now):
            version = driver.scheduler.state.versions.get(key)
            instances = list(version.instances) if version is not None else []
            driver.unload(key, now=now)
            if not wait or version is None:
                return not instances, None
            policy = version.policy
            limit = (0.0 if now else policy.drain) + policy.release_cap + STOP_ALLOWANCE
            return await follow.gone(driver, instances, limit), None
        case ev.Arrived():
            return True, await _request(driver, event)
        case _:
            raise AssertionError(f"no order makes {event!r}")


async def _request(driver: Driver, event: ev.Arrived) -> str:
    """A request that asks nothing: it takes its slot, as any other would, and gives it back. The instance."""
    course = Ended(driver.new_request(), event.version, KIND, asyncio.get_running_loop().time(), "cancelled")
    try:
        lease = await driver.wait(driver.arrive(replace(event, request=course.request), KIND))
        lease.release(OutcomeKind.CANCELLED)
        course.instance, course.outcome = lease.instance, "ok"
    except ModelyardError as error:
        course.outcome = error.code
        raise
    finally:
        if driver.journal is not None:
            driver.journal.ended(course)
    return lease.instance
