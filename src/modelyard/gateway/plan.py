"""`/admin/plan` and `/admin/apply-plan`: what an order would do, and doing exactly that.

Wired by `gateway/admin.py`; plans are made, kept and checked by `gateway/kept_plans.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Body, Response
from pydantic import Field, model_validator

from modelyard.config import Config
from modelyard.core import events as ev
from modelyard.core.dryrun import Does
from modelyard.core.dryrun import PlannedStep as Step
from modelyard.core.plan import Plan
from modelyard.core.types import OutcomeKind, Priority
from modelyard.errors import (
    CannotLoad,
    ConfigRefused,
    InvalidRequest,
    ModelNotFound,
    ModelyardError,
    NotRunning,
    PlanNotFound,
    PlanStale,
    QueueFull,
    RestartNeeded,
    ShuttingDown,
    UnsupportedMediaType,
    WaitTooLong,
)
from modelyard.gateway import follow, views
from modelyard.gateway.kept_plans import Kept, Plans
from modelyard.gateway.live import Applied, LiveConfig
from modelyard.gateway.names import Bring, Names, reach
from modelyard.gateway.reference import STARTING, refusals
from modelyard.runtime.driver import Driver
from modelyard.runtime.journal_records import Ended

log = structlog.get_logger(__name__)

KIND = "plan"  # of a planned request, in the journal
STOP_ALLOWANCE = 10.0  # seconds for TERM, KILL and the shim, on top of drain and release caps


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
    max_wait: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Seconds; else its model's."
    )


class PlanConfig(views.Order):
    path: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None,
        description="A file on the server's machine; none: the one that is served, read again.",
        examples=["/etc/modelyard.yaml"],
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
    at: float = Field(description="Seconds from now, as expected from history.", examples=[0.0])
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

    id: str = Field(examples=["plan-5c1e9a02b7d4f613"])
    order: str
    steps: list[PlannedStep] = Field(
        description="In order, as far as it looked ahead: `open` says where that ended."
    )
    preconditions: list[PlannedOn]
    memory: list[PlannedMemory]
    seconds: float = Field(description="Until the last step, as expected.")
    open: list[str] = Field(description="What cannot be known yet, in words.")


class ApplyOrder(views.Order):
    id: str = Field(description="Of a plan.", examples=["plan-5c1e9a02b7d4f613"])
    wait: bool = Field(
        default=True,
        description="Answer when it is done, or with what stood in the way. A request is always waited for.",
    )


class PlanApplied(views.View):
    id: str = Field(examples=["plan-5c1e9a02b7d4f613"])
    order: str
    done: bool = Field(description="False when it goes on.")
    instance: str | None = Field(description="That is ready, or had a slot for the request.")
    seconds: float


def view_of(kept: Kept) -> PlanView:
    made = kept.plan
    return PlanView(
        id=kept.id,
        order=kept.order,
        steps=[_step(step) for step in made.steps],
        preconditions=[
            PlannedOn(name=each.name, value=each.value, note=each.note) for each in made.preconditions
        ],
        memory=[
            PlannedMemory(
                device=each.device,
                name=each.name,
                budget=each.budget,
                reserved={"before": each.reserved_before, "after": each.reserved_after},
                free={"before": each.free_before, "after": each.free_after},
            )
            for each in made.memory
        ],
        seconds=round(made.seconds, 3),
        open=list(made.open),
    )


def _step(step: Step) -> PlannedStep:
    return PlannedStep(
        at=round(step.at, 3),
        does=step.does,
        model=step.model,
        version=step.version,
        instance=step.instance or None,
        memory=dict(step.bytes),
        reason=step.reason,
        winner=step.winner.rpartition("@")[0] or None,
        code=step.code or None,
        requests=step.count,
        seconds=round(step.seconds, 3),
        score=dict(step.score),
    )


# -- routes ---------------------------------------------------------------------------------------------


def add_plans(
    router: APIRouter, driver: Driver, names: Names, live: LiveConfig, plans: Plans, bring: Bring
) -> None:
    """`bring` has a registered version served under its own name."""
    refused = (ConfigRefused, RestartNeeded, UnsupportedMediaType)

    @router.post(
        "/plan",
        tags=["plans"],
        responses=refusals(ModelNotFound, CannotLoad, ShuttingDown, InvalidRequest, *refused),
    )
    async def make(order: Annotated[PlanOrder, Body()]) -> PlanView:
        """What a load, an unload, a request or another configuration would do now, in order, and what that
        rests on. Nothing is changed."""
        if order.config is not None:
            _, made = await apply_config(live, plans, order.config.file, dry_run=True)
            assert made is not None
            return view_of(made)
        return view_of(await plans.make(*await reach(lambda: _events(order, names), bring)))

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
            made.append(Kept(f"serve {source}", found, source, config))
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
    requests = driver.requests
    course = Ended(requests.new(), event.version, KIND, asyncio.get_running_loop().time(), "cancelled")
    try:
        lease = await requests.wait(requests.arrive(replace(event, request=course.request), KIND))
        lease.release(OutcomeKind.CANCELLED)
        course.instance, course.outcome = lease.instance, "ok"
    except ModelyardError as error:
        course.outcome = error.code
        raise
    finally:
        if driver.journal is not None:
            driver.journal.ended(course)
    return lease.instance
