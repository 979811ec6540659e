"""`/v1/tasks`: long work, how far it is, and ending it.

Mounted by `gateway/app.py`; the tasks are those of `runtime.tasks`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from modelyard.config import Key
from modelyard.errors import ModelyardError, TaskNotFound, TooManyConnections
from modelyard.gateway import views
from modelyard.gateway.follow import HEARTBEAT, Followers, Place
from modelyard.gateway.http.answers import error_object
from modelyard.gateway.reference import refusals
from modelyard.gateway.registry_control import Control, caller_of
from modelyard.runtime.tasks import Task, TaskState

_STREAM = "text/event-stream"
_LEAST = 0.1  # seconds between two events of progress

Id = Annotated[str, Path(max_length=64, description="Of a task.")]


class TaskView(views.View):
    """Long work. `total` is left out while it is not known; so is what it has not come to."""

    id: str = Field(examples=["t5c1e9a02-3"])
    kind: str = Field(
        description="promote, rollback, remove, quantize, prefetch, verify.", examples=["promote"]
    )
    subject: str = Field(description="What it is about.")
    state: TaskState
    done: int = Field(description="Bytes of a fetch, else pieces.")
    total: int | None = None
    note: str = Field(description="What it is at.")
    created: float
    ended: float | None = None
    result: dict[str, Any] | None = None
    error: views.ErrorDetail | None = Field(default=None, examples=[None])


class TaskList(views.View):
    data: list[TaskView] = Field(description="The oldest first.")


def view_of(task: Task) -> TaskView:
    return TaskView(
        id=task.id,
        kind=task.kind,
        subject=task.subject,
        state=task.state,
        done=task.done,
        total=task.total,
        note=task.note,
        created=task.created,
        ended=task.ended,
        result=None if task.result is None else dict(task.result),
        error=None if task.error is None else error_view(task.error),
    )


def error_view(error: ModelyardError) -> views.ErrorDetail:
    return views.ErrorDetail.model_validate(error_object(error))


def add_tasks(router: APIRouter, control: Control, keys: Callable[[], Collection[Key]]) -> None:
    """`keys` are those in force: nobody follows a task with one that is not."""
    followers = Followers(keys)

    @router.get("/v1/tasks", tags=["tasks"], response_model_exclude_none=True)
    async def listed() -> TaskList:
        """The tasks that run, and the last that ended."""
        return TaskList(data=[view_of(task) for task in control.tasks.all()])

    @router.get(
        "/v1/tasks/{task}",
        tags=["tasks"],
        response_model=TaskView,
        response_model_exclude_none=True,
        responses={
            200: {
                "description": "With `Accept: text/event-stream`: an event named `progress` at each change, "
                "at last one named `done`, `failed` or `cancelled`.",
                "content": {_STREAM: {"schema": {"type": "string"}}},
            },
            **refusals(TaskNotFound, TooManyConnections),
        },
    )
    async def one(
        request: Request,
        task: Id,
        accept: Annotated[str, Header(description="Which of both.", max_length=1000)] = "",
    ) -> TaskView | Response:
        """One task; or its events, until it ends."""
        found = control.tasks.find(task)
        if _STREAM not in accept:
            return view_of(found)
        place = followers.place(caller_of(request))
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(events(found, place), media_type=_STREAM, headers=headers)

    @router.post(
        "/v1/tasks/{task}/cancel",
        tags=["tasks"],
        response_model_exclude_none=True,
        responses=refusals(TaskNotFound),
    )
    async def cancel(task: Id) -> TaskView:
        """Have it end. What it has done by then stays done; one that ended stays as it is."""
        return view_of(control.tasks.cancel(task))


async def events(task: Task, place: Place, *, heartbeat: float = HEARTBEAT) -> AsyncIterator[bytes]:
    """The task as it is, and at each change, as server-sent events; a comment when nothing happens."""
    with place() as may_go_on:
        told = -1
        while may_go_on():
            if told != task.changes:
                told, state = task.changes, task.state
                name = "progress" if state is TaskState.RUNNING else state.value
                data = view_of(task).model_dump_json(exclude_none=True)
                yield f"event: {name}\ndata: {data}\n\n".encode()
                if state is not TaskState.RUNNING:
                    return
                await asyncio.sleep(_LEAST)  # what changes often is told now and then
                continue
            try:
                async with asyncio.timeout(heartbeat):
                    await task.changed()
            except TimeoutError:
                yield b": still here\n\n"
