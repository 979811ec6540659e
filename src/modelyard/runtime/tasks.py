"""Long work that outlives the request that asked for it: how far it is, how it ended, and who may end it.

Owned by compose, which closes it; used by the gateway. Only so many run at a time; of those that ended the
last are kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import count
from secrets import token_hex
from typing import Any

import structlog

from modelyard.errors import (
    InternalError,
    ModelyardError,
    ShuttingDown,
    TaskCancelled,
    TaskNotFound,
    TooManyTasks,
)

log = structlog.get_logger(__name__)

RUNNING = 64
KEPT = 256
LATEST = 5.0  # seconds that work may take to end once it was cancelled


class TaskState(StrEnum):
    """running, until it ends as one of: done, failed, cancelled."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)
class Task:
    """One piece of work. `kind` is a word, `subject` what it is about. `done` of `total` (None: not known)
    are bytes or pieces, `note` says in a few words what it is at. Moments are seconds since the epoch.
    `changes` grows with each change of any of these."""

    id: str
    kind: str
    subject: str
    created: float = field(default_factory=time.time)
    ended: float | None = None
    state: TaskState = TaskState.RUNNING
    done: int = 0
    total: int | None = None
    note: str = ""
    result: Mapping[str, object] | None = None
    error: ModelyardError | None = None
    changes: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _job: asyncio.Task[Mapping[str, object]] | None = field(default=None, repr=False)

    def step(self, note: str | None = None, *, done: int | None = None, total: int | None = None) -> None:
        """Tell how far it is; what is None stays as it was."""
        self.note = self.note if note is None else note
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        self._tell()

    def _tell(self) -> None:
        self.changes += 1
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    async def changed(self) -> None:
        """Return at its next change."""
        await self._changed.wait()

    async def finished(self) -> Mapping[str, object]:
        """Its result. Raises the error that it failed with; TaskCancelled. Who stops waiting does not end
        it."""
        while self.state is TaskState.RUNNING:
            await self.changed()
        if self.error is not None:
            raise self.error
        return self.result or {}


Work = Callable[[Task], Coroutine[Any, Any, Mapping[str, object]]]
"""Does it, and returns its result as JSON. What it raises is the task's error; cancelled, it leaves what it
works on as it was, or done."""


class Tasks:
    """Those that run, and the last that ended, oldest first."""

    def __init__(self, *, running: int = RUNNING, kept: int = KEPT) -> None:
        self._most = running
        self._kept = kept
        self._tasks: dict[str, Task] = {}
        self._run = f"t{token_hex(4)}-"
        self._numbers = count(1)
        self._closed = False

    def all(self) -> list[Task]:
        return list(self._tasks.values())

    def find(self, name: str) -> Task:
        """Raises TaskNotFound."""
        task = self._tasks.get(name)
        if task is None:
            raise TaskNotFound(f"There is no task {name[:64]!r}; /v1/tasks lists those that are known.")
        return task

    def check(self) -> None:
        """Raises TooManyTasks, ShuttingDown when no other could be started."""
        if self._closed:
            raise ShuttingDown("the server is shutting down")
        running = sum(task.state is TaskState.RUNNING for task in self._tasks.values())
        if running >= self._most:
            raise TooManyTasks(f"{running} tasks run already; wait for one, or cancel it.", retry_after=5.0)

    def start(self, kind: str, subject: str, work: Work) -> Task:
        """Have this done from now on, whoever asked for it. Raises TooManyTasks, ShuttingDown."""
        self.check()
        task = Task(f"{self._run}{next(self._numbers)}", kind, subject)
        self._tasks[task.id] = task
        self._forget()
        task._job = asyncio.get_running_loop().create_task(work(task), name=f"task {task.id}")
        task._job.add_done_callback(partial(self._end, task))
        return task

    def cancel(self, name: str) -> Task:
        """Ask it to end; that it has, its state tells. One that ended stays as it is. Raises TaskNotFound."""
        task = self.find(name)
        if task.state is TaskState.RUNNING and task._job is not None and not task._job.cancelling():
            task._job.cancel()  # once: it may have something to put back
        return task

    async def close(self) -> None:
        """Cancel all that run, and take no more. Idempotent."""
        self._closed = True
        jobs = [task._job for task in self._tasks.values() if task._job is not None and not task._job.done()]
        for job in jobs:
            if not job.cancelling():
                job.cancel()
        if jobs:
            _, late = await asyncio.wait(jobs, timeout=LATEST)
            if late:
                log.error("tasks.late", names=sorted(job.get_name() for job in late))

    def _end(self, task: Task, job: asyncio.Task[Mapping[str, object]]) -> None:
        error = None if job.cancelled() else job.exception()
        if job.cancelled():
            task.state = TaskState.CANCELLED
            task.error = TaskCancelled(f"{task.kind} {task.subject} was cancelled.")
        elif error is None:
            task.state, task.result = TaskState.DONE, job.result()
        else:
            task.state = TaskState.FAILED
            task.error = error if isinstance(error, ModelyardError) else self._fault(task, error)
        task.ended = time.time()
        task._tell()

    def _fault(self, task: Task, error: BaseException) -> ModelyardError:
        log.error("task.failed", task=task.id, kind=task.kind, subject=task.subject, exc_info=error)
        return InternalError(f"{task.kind} {task.subject} failed; the server's log says why.")

    def _forget(self) -> None:
        """The oldest of those that ended go."""
        ended = [task.id for task in self._tasks.values() if task.state is not TaskState.RUNNING]
        for name in ended[: max(0, len(ended) - self._kept)]:
            del self._tasks[name]
