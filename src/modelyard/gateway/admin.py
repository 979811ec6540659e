"""The control surface under /admin: what is there, and the orders to load, unload and drain.

Mounted by `gateway/app.py`. Who may call it was decided before (keys, Host, Origin); here only the shape of
a request is checked. Orders go to the driver; nothing is decided here.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from modelyard.core.events import FenceAsked
from modelyard.errors import (
    CannotLoad,
    InstanceNotFound,
    ModelNotFound,
    NotFound,
    NotRunning,
    ShuttingDown,
    TooManyConnections,
    UnsupportedMediaType,
)
from modelyard.gateway import explain, follow, views
from modelyard.gateway.config import add_config
from modelyard.gateway.kept_plans import Plans
from modelyard.gateway.live import LiveConfig
from modelyard.gateway.names import Bring, Names
from modelyard.gateway.plan import STOP_ALLOWANCE, add_plans
from modelyard.gateway.reference import STARTING, refusals
from modelyard.gateway.registry_control import caller_of
from modelyard.gateway.snapshot import Snapshot
from modelyard.runtime.driver import Driver
from modelyard.runtime.journal import Journal
from modelyard.runtime.journal_records import Kind

MOST_LINES = 10_000
_EVENT_STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}

ModelName = Annotated[str, Path(description="A model's name or alias; it may hold `/`, `:` and `@`.")]
Lines = Annotated[int, Query(ge=1, le=MOST_LINES)]


async def needs_json(request: Request) -> None:
    """A change with a body says that it is JSON: a form on a foreign page cannot. Raises
    UnsupportedMediaType."""
    if request.method in ("GET", "HEAD") or not await request.body():
        return
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise UnsupportedMediaType(
            f"{request.method} {request.url.path} takes JSON; send `content-type: application/json`."
        )


def admin_router(
    driver: Driver,
    names: Names,
    snapshot: Snapshot,
    live: LiveConfig,
    plans: Plans,
    bring: Bring,
) -> APIRouter:
    """The routes under /admin. `bring` has a registered version served under its own name."""
    router = APIRouter(prefix="/admin", dependencies=[Depends(needs_json)])
    followers = follow.Followers(lambda: live.keys)
    _add_reading(router, driver, snapshot)
    _add_fences(router, driver, snapshot)
    _add_instances(router, driver, snapshot)
    _add_logs(router, driver, snapshot, followers)
    _add_events(router, driver, snapshot, followers)
    _add_journal(router, driver, names, followers)
    _add_load(router, driver, names, bring)
    _add_unload(router, driver, names, bring)
    add_plans(router, driver, names, live, plans, bring)
    add_config(router, live, plans)
    return router


def _add_reading(router: APIRouter, driver: Driver, snapshot: Snapshot) -> None:
    @router.get("/status", tags=["status"])
    async def status() -> views.Status:
        """Everything in one answer."""
        return snapshot.status()

    @router.get("/devices", tags=["status"])
    async def devices() -> list[views.DeviceView]:
        """The ledger of each device: who holds what, what is foreign, what is free."""
        instances = list(driver.scheduler.state.instances)
        pids = await asyncio.to_thread(lambda: {name: driver.launcher.pids(name) for name in instances})
        return snapshot.devices(pids)

    @router.get("/queues", tags=["status"])
    async def queues() -> list[views.QueueView]:
        """Who waits for which model, how long, and for what."""
        return snapshot.queues()

    @router.get("/models", tags=["models"])
    async def models() -> list[views.ModelView]:
        """Every model with what scheduling knows of it."""
        return snapshot.models()


def _add_fences(router: APIRouter, driver: Driver, snapshot: Snapshot) -> None:
    def device(name: str) -> views.DeviceView:
        found = next((one for one in snapshot.devices({}) if one.id == name), None)
        if found is None:
            known = ", ".join(driver.scheduler.state.ledger.devices)
            raise NotFound(f"There is no device {name}; there are {known}.")
        return found

    @router.post("/devices/{name}/fence", tags=["status"], responses=refusals(NotFound, UnsupportedMediaType))
    async def fence(name: str, order: Annotated[views.FenceOrder | None, Body()] = None) -> views.DeviceView:
        """Place nothing on this device any more; who is there finishes what runs, and leaves. Does not
        wait."""
        order = order or views.FenceOrder()
        device(name)
        driver.post(FenceAsked(name, order.reason, order.now))
        return device(name)

    @router.post("/devices/{name}/unfence", tags=["status"], responses=refusals(NotFound))
    async def unfence(name: str) -> views.DeviceView:
        """Use this device again. One that is lost comes back by itself."""
        device(name)
        driver.post(FenceAsked(name))
        return device(name)


def _add_instances(router: APIRouter, driver: Driver, snapshot: Snapshot) -> None:
    @router.get("/instances", tags=["instances"])
    async def instances() -> list[views.InstanceView]:
        """Every instance that holds memory."""
        return snapshot.instances()

    @router.get("/instances/{instance}", tags=["instances"], responses=refusals(InstanceNotFound))
    async def instance(instance: str) -> views.InstanceDetails:
        """One instance, with its processes and where its output lies."""
        found = snapshot.find(instance)
        pids = await asyncio.to_thread(driver.launcher.pids, instance)
        return snapshot.details(found, pids, str(driver.launcher.log(instance) or ""))

    @router.post(
        "/instances/{instance}/drain",
        tags=["instances"],
        status_code=202,
        responses=refusals(InstanceNotFound),
    )
    async def drain(instance: str) -> views.InstanceView:
        """Give it no more requests, let what runs finish, then stop it. Does not wait."""
        found = snapshot.find(instance)
        driver.unload(found.version.key, instance=instance)
        return snapshot.instance(found)


def _add_logs(router: APIRouter, driver: Driver, snapshot: Snapshot, followers: follow.Followers) -> None:
    @router.get(
        "/instances/{instance}/logs",
        tags=["instances"],
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **refusals(InstanceNotFound, TooManyConnections),
        },
    )
    async def logs(
        request: Request,
        instance: str,
        lines: Lines = 100,
        follow_: Annotated[bool, Query(alias="follow")] = False,
    ) -> Response:
        """The last lines of its output, also for a while after its end; `follow` goes on with what it
        writes."""
        path = driver.launcher.log(instance)
        if path is None:
            snapshot.find(instance)
            raise InstanceNotFound(f"{instance} has no output here: it does not run on this machine.")
        if follow_:
            stream = follow.output(driver, followers.place(caller_of(request)), instance, path, lines)
            return StreamingResponse(stream, media_type="text/plain", headers=_EVENT_STREAM)
        text = await asyncio.to_thread(driver.launcher.tail, instance, lines)
        return PlainTextResponse(f"{text}\n" if text else "")


def _add_events(router: APIRouter, driver: Driver, snapshot: Snapshot, followers: follow.Followers) -> None:
    @router.get(
        "/events",
        tags=["status"],
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": views.EventView.model_json_schema()}}},
            **refusals(TooManyConnections),
        },
    )
    async def events(request: Request, last: Annotated[int, Query(ge=0, le=512)] = 50) -> StreamingResponse:
        """The last events, then each new one, as server-sent events until the client leaves."""
        return StreamingResponse(
            follow.events(driver, snapshot, followers.place(caller_of(request)), last),
            media_type="text/event-stream",
            headers=_EVENT_STREAM,
        )


def _add_journal(router: APIRouter, driver: Driver, names: Names, followers: follow.Followers) -> None:
    one_at_a_time = asyncio.Semaphore(1)  # each reads the whole journal

    @router.get(
        "/journal",
        tags=["journal"],
        response_class=StreamingResponse,
        responses={
            200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
            **refusals(NotFound, TooManyConnections),
        },
    )
    async def journal(
        http: Request,
        since: Annotated[float | None, Query(description="Seconds since 1970.")] = None,
        model: Annotated[str | None, Query(max_length=300)] = None,
        request: Annotated[str | None, Query(max_length=300)] = None,
        kind: Annotated[
            list[Kind] | None, Query(description="One of these; may be given several times.")
        ] = None,
        limit: Annotated[
            int | None, Query(ge=1, le=explain.MOST_LINES, description="The last so many.")
        ] = None,
    ) -> StreamingResponse:
        """What the scheduler was told and decided, as lines of JSON, the oldest first."""
        kept = _journal_of(driver)
        place = followers.place(caller_of(http))
        if model is not None:
            with suppress(ModelNotFound):  # it may have been removed
                model = names.resolve(model).spec.model
        chosen = explain.Selection(since, model, request, kind or (), limit)
        stream = explain.export(kept, place, chosen)
        return StreamingResponse(stream, media_type="application/x-ndjson", headers=_EVENT_STREAM)

    @router.get("/explain/{name:path}", tags=["journal"], responses=refusals(NotFound))
    async def explained(
        name: Annotated[str, Path(description="A request (`x-modelyard-request`), or a model.")],
    ) -> views.Explanation:
        """What happened to a request or a model, and why, in plain sentences."""
        kept = _journal_of(driver)
        async with one_at_a_time:
            return await explain.explain(kept, names, name)


def _journal_of(driver: Driver) -> Journal:
    """Raises NotFound when none is kept."""
    if driver.journal is None:
        raise NotFound("No journal is kept here: the configuration says `journal: {enabled: false}`.")
    return driver.journal


def _add_load(router: APIRouter, driver: Driver, names: Names, bring: Bring) -> None:
    @router.post(
        "/models/{name:path}/load",
        tags=["models"],
        responses={
            202: {"model": views.Loading, "description": "The load goes on (`wait: false`)."},
            **refusals(*STARTING, NotRunning, UnsupportedMediaType),
        },
    )
    async def load(
        response: Response, name: ModelName, order: Annotated[views.LoadOrder | None, Body()] = None
    ) -> views.Loading:
        """Have an instance of the model ready."""
        order = order or views.LoadOrder()
        entry = await names.reach(name, bring)
        began = asyncio.get_running_loop().time()
        instance = await driver.load(entry.spec.version, evict=order.evict, wait=order.wait)
        response.status_code = 200 if instance is not None else 202
        return views.Loading(
            model=entry.spec.model,
            version=entry.newest.spec.version,
            instance=instance,
            seconds=asyncio.get_running_loop().time() - began,
        )


def _add_unload(router: APIRouter, driver: Driver, names: Names, bring: Bring) -> None:
    @router.post(
        "/models/{name:path}/unload",
        tags=["models"],
        responses={
            202: {"model": views.Unloading, "description": "It has not gone yet."},
            **refusals(ModelNotFound, CannotLoad, ShuttingDown, UnsupportedMediaType),
        },
    )
    async def unload(
        response: Response, name: ModelName, order: Annotated[views.UnloadOrder | None, Body()] = None
    ) -> views.Unloading:
        """Let every instance of the model finish what it runs, and stop it."""
        order = order or views.UnloadOrder()
        entry = await names.reach(name, bring)
        key, policy = entry.spec.version, entry.policy
        began = asyncio.get_running_loop().time()
        version = driver.scheduler.state.versions.get(key)
        instances = list(version.instances) if version is not None else []
        driver.unload(key, now=order.now)
        if order.wait:
            drain = 0.0 if order.now else policy.drain
            gone = await follow.gone(driver, instances, drain + policy.release_cap + STOP_ALLOWANCE)
        else:
            gone = not instances
        response.status_code = 200 if gone else 202
        return views.Unloading(
            model=entry.spec.model,
            version=key,
            gone=gone,
            instances=instances,
            seconds=asyncio.get_running_loop().time() - began,
        )
