"""`POST /v1/cache/prefetch`: the files of models, fetched before anybody asks for them.

Mounted by `gateway/app.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Body, Response
from pydantic import Field

from modelyard.errors import (
    InternalError,
    ModelyardError,
    ShuttingDown,
    TaskCancelled,
    TooManyTasks,
    UnsupportedMediaType,
)
from modelyard.gateway import views
from modelyard.gateway.reference import refusals
from modelyard.gateway.registry_control import Control
from modelyard.gateway.registry_views import Prefetch
from modelyard.gateway.tasks_routes import TaskView, error_view
from modelyard.gateway.version_routes import Wait, started
from modelyard.runtime.entries import Progress
from modelyard.runtime.tasks import Task

log = structlog.get_logger(__name__)

AT_ONCE = 2  # fewer than the store fetches at once: users' requests fetch too


class Prefetched(views.View):
    """What came of one name."""

    model: str
    outcome: Literal["fetched", "present", "failed"]
    bytes: int = Field(description="That were fetched.")
    error: views.ErrorDetail | None = None


class PrefetchResult(views.View):
    models: list[Prefetched] = Field(description="In the order in which they were named.")


def add_prefetch(router: APIRouter, control: Control) -> None:
    @router.post(
        "/v1/cache/prefetch",
        tags=["registry"],
        status_code=202,
        response_model=TaskView,
        responses={
            200: {"model": PrefetchResult, "description": "What came of each (`wait=true`)."},
            202: {"model": TaskView, "description": "The task that does it."},
            **refusals(TooManyTasks, TaskCancelled, ShuttingDown, UnsupportedMediaType),
        },
    )
    async def prefetch(order: Annotated[Prefetch, Body()], wait: Wait = False) -> Response:
        """Fetch the files of these models; that some fail keeps nobody from the others."""
        names = list(dict.fromkeys(order.models))

        async def work(task: Task) -> Mapping[str, object]:
            return await _Fetching(control, task, names).run()

        subject = names[0] if len(names) == 1 else f"{len(names)} models"
        return await started(control, "prefetch", subject, work, wait=wait)


class _Fetching:
    """The fetches of one order; `_sizes` are bytes by name, done and in all."""

    def __init__(self, control: Control, task: Task, names: list[str]) -> None:
        self._control = control
        self._task = task
        self._names = names
        self._sizes: dict[str, tuple[int, int | None]] = dict.fromkeys(names, (0, None))
        self._some = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> Mapping[str, object]:
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(self._one(name)) for name in self._names]
        result = PrefetchResult(models=[job.result() for job in jobs])
        failed = sum(job.result().outcome == "failed" for job in jobs)
        self._task.step(f"{len(jobs) - failed} here, {failed} failed")
        return result.model_dump(mode="json", exclude_none=True)

    async def _one(self, name: str) -> Prefetched:
        async with self._some:
            try:
                entry = await self._control.names.reach(name, self._control.catalog.bring)
                if entry.files is not None:
                    self._sizes[name] = (0, 0)
                    return Prefetched(model=name, outcome="present", bytes=0)
                self._task.step(f"fetching {name}")
                await self._control.driver.fetch(entry, lambda progress: self._told(name, progress))
            except ModelyardError as error:
                return Prefetched(model=name, outcome="failed", bytes=0, error=error_view(error))
            except Exception:  # of one source: the others are fetched
                log.exception("prefetch.failed", model=name)
                fault = InternalError(f"{name} could not be fetched; the server's log says why.")
                return Prefetched(model=name, outcome="failed", bytes=0, error=error_view(fault))
        return Prefetched(model=name, outcome="fetched", bytes=self._sizes[name][0])

    def _told(self, name: str, progress: Progress) -> None:
        self._sizes[name] = (progress.done, progress.total)
        totals = [total for _, total in self._sizes.values()]
        known = [total for total in totals if total is not None]
        done = sum(done for done, _ in self._sizes.values())
        self._task.step(done=done, total=sum(known) if len(known) == len(totals) else None)
