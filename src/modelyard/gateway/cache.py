"""`/admin/cache`: which model files are here, removing those that nobody uses, and reading all of them again.

Mounted by `gateway/app.py`; the work is the store's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from modelyard.errors import (
    InvalidRequest,
    ModelNotFound,
    NotFound,
    ShuttingDown,
    TaskCancelled,
    TooManyTasks,
    UnsupportedMediaType,
)
from modelyard.gateway import views
from modelyard.gateway.admin import needs_json
from modelyard.gateway.reference import refusals
from modelyard.gateway.registry_control import Control
from modelyard.gateway.tasks_routes import TaskView
from modelyard.gateway.version_routes import Wait, started
from modelyard.runtime.tasks import Task
from modelyard.store import Store, report
from modelyard.store.verify import RATE, verify


class Unfinished(views.View):
    done: int = Field(description="Bytes of the file that are here.")
    total: int | None = Field(description="Bytes of all of it; null while that is not known.")


class CachedFile(views.View):
    digest: str = Field(description="Its sha256 in hex; empty for one that is unfinished.")
    path: str
    bytes: int = Field(description="That it takes.")
    in_cache: bool = Field(description="False: it is used where it lies, and never removed.")
    kind: str = Field(description="gguf, safetensors, pickle; empty while nobody looked.")
    sources: list[str] = Field(description="What stands for it; none: it was forgotten.")
    used: float = Field(description="When an engine was started with it last, or it was fetched (epoch).")
    models: list[str] = Field(description="That were started with it.")
    in_use: bool = Field(description="A running model, or a policy, needs it; or it is being fetched.")
    unfinished: Unfinished | None = Field(description="Set for what is left of a download that did not end.")


class CacheView(views.View):
    """The files that models came from."""

    bytes: int = Field(description="Of the files in the cache, unfinished ones included.")
    quota: int | None = Field(description="`store.quota`; null: none.")
    quarantined: int = Field(description="Bytes of files that were set aside.")
    files: list[CachedFile] = Field(description="The last used first.")


class PruneOrder(BaseModel):
    """What is to go: one of `files`, `older` and `all`. What is in use never goes."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"older": 2592000, "dry_run": True}]}
    )

    files: list[Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=list, max_length=1000, description="Sources, paths, digests, or models."
    )
    older: float | None = Field(default=None, ge=0, le=1e10, description="Seconds that nobody used it.")
    all: bool = Field(default=False, description="All that is not in use, and what was set aside.")
    dry_run: bool = Field(default=False, description="Change nothing; say what would go.")


class Pruned(views.View):
    dry_run: bool
    bytes: int = Field(description="That became free.")
    removed: list[CachedFile] = Field(description="Their sources may stand for other bytes from now on.")
    in_use: list[CachedFile] = Field(description="That were named and stay.")


class VerifyOrder(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"rate": RATE}]})

    rate: int = Field(default=RATE, ge=2**10, le=2**40, description="Bytes a second, at most.")


class VerifiedFile(CachedFile):
    problem: str = Field(description="Empty where the file is what it was.")


class Verification(views.View):
    """The result of a task of the kind `verify`."""

    bad: int
    files: list[VerifiedFile]


def cache_router(store: Store, control: Control) -> APIRouter:
    router = APIRouter(prefix="/admin/cache", tags=["files"], dependencies=[Depends(needs_json)])

    @router.get("")
    async def listed() -> CacheView:
        """The model files that are here: how large, used when, by whom."""
        return CacheView.model_validate(await asyncio.to_thread(report.listing, store))

    @router.post("/prune", responses=refusals(NotFound, InvalidRequest, UnsupportedMediaType))
    async def prune(order: Annotated[PruneOrder, Body()]) -> Pruned:
        """Remove files that nobody uses."""
        sources = {name: _sources(control, name) for name in order.files}
        files = tuple(order.files)
        wanted = report.Prune(files, order.older, order.all, order.dry_run, sources)
        return Pruned.model_validate(await asyncio.to_thread(report.prune, store, wanted))

    @router.post(
        "/verify",
        status_code=202,
        response_model=TaskView,
        responses={
            200: {"model": Verification, "description": "What came of each (`wait=true`)."},
            202: {"model": TaskView, "description": "The task that does it."},
            **refusals(TooManyTasks, TaskCancelled, ShuttingDown, UnsupportedMediaType),
        },
    )
    async def verify_all(order: Annotated[VerifyOrder | None, Body()] = None, wait: Wait = False) -> Response:
        """Read every file again, one after the other, and set aside what is not what it was."""
        rate = (order or VerifyOrder()).rate

        async def work(task: Task) -> Mapping[str, object]:
            return await _verified(store, task, rate)

        return await started(control, "verify", "the cache", work, wait=wait)

    return router


def _sources(control: Control, name: str) -> Collection[str]:
    """Those of the model of this name; none where it is no model's."""
    try:
        entry = control.catalog.get(name).entry
    except ModelNotFound:
        return ()
    return entry.engine.sources(entry.spec).values()


async def _verified(store: Store, task: Task, rate: float) -> Mapping[str, object]:
    items = await asyncio.to_thread(store.shelf.items)
    task.step("reading", total=sum(item.size for item in items if item.unfinished is None))
    verdicts, done = [], 0
    async for verdict in verify(store, rate=rate):
        verdicts.append(verdict)
        done += verdict.item.size
        task.step(f"{verdict.item.path}: {verdict.problem or 'as it was'}", done=done)
    return report.verified(verdicts)
