"""Long work: how far it is, how it ends, and that nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from modelyard.errors import InternalError, ShuttingDown, TaskCancelled, TaskNotFound, TooManyTasks
from modelyard.runtime.tasks import Task, Tasks, TaskState

LIMIT = 10.0


async def nothing(task: Task) -> Mapping[str, object]:
    return {"of": task.subject}


async def for_ever(task: Task) -> Mapping[str, object]:
    task.step("waiting")
    await asyncio.Event().wait()
    raise AssertionError


async def ended(task: Task) -> Task:
    async with asyncio.timeout(LIMIT):
        while task.state is TaskState.RUNNING:
            await task.changed()
    return task


async def test_it_is_done_with_a_result() -> None:
    tasks = Tasks()
    task = tasks.start("try", "a", nothing)
    assert (task.state, task.ended, tasks.find(task.id), tasks.all()) == ("running", None, task, [task])
    assert await task.finished() == {"of": "a"}
    assert task.state is TaskState.DONE
    assert task.ended is not None
    assert task.ended >= task.created
    assert task.error is None


async def test_who_waits_is_told_each_change() -> None:
    go = asyncio.Event()

    async def stepwise(task: Task) -> Mapping[str, object]:
        task.step("first", done=1, total=3)
        await go.wait()
        task.step(done=3)
        return {}

    task = Tasks().start("try", "a", stepwise)
    async with asyncio.timeout(LIMIT):
        await task.changed()
        assert (task.note, task.done, task.total) == ("first", 1, 3)
        before = task.changes
        go.set()
        await task.finished()
    assert task.changes == before + 2
    assert (task.note, task.done, task.total) == ("first", 3, 3)


async def test_it_fails_with_its_own_error() -> None:
    error = ShuttingDown("no")

    async def fails(task: Task) -> Mapping[str, object]:
        raise error

    task = Tasks().start("try", "a", fails)
    with pytest.raises(ShuttingDown) as raised:
        await task.finished()
    assert raised.value is error
    assert task.state is TaskState.FAILED


async def test_a_bug_is_told_without_its_text() -> None:
    async def fails(task: Task) -> Mapping[str, object]:
        raise KeyError("a secret")

    task = Tasks().start("try", "a", fails)
    with pytest.raises(InternalError) as raised:
        await task.finished()
    assert "secret" not in raised.value.message


@pytest.mark.parametrize("begun", [True, False])
async def test_it_is_cancelled(begun: bool) -> None:
    tasks = Tasks()
    task = tasks.start("try", "a", for_ever)
    if begun:
        await task.changed()
    assert tasks.cancel(task.id) is task
    assert (await ended(task)).state is TaskState.CANCELLED
    assert isinstance(task.error, TaskCancelled)
    with pytest.raises(TaskCancelled):
        await task.finished()
    assert tasks.cancel(task.id).state is TaskState.CANCELLED


async def test_one_that_is_done_is_not_cancelled() -> None:
    tasks = Tasks()
    task = tasks.start("try", "a", nothing)
    await task.finished()
    assert tasks.cancel(task.id).state is TaskState.DONE


async def test_only_so_many_run() -> None:
    tasks = Tasks(running=2)
    first, _ = (tasks.start("try", str(number), for_ever) for number in range(2))
    with pytest.raises(TooManyTasks):
        tasks.start("try", "2", nothing)
    assert len(tasks.all()) == 2
    tasks.cancel(first.id)
    await ended(first)
    await tasks.start("try", "2", nothing).finished()
    await tasks.close()


async def test_the_last_that_ended_are_kept() -> None:
    tasks = Tasks(kept=2)
    running = tasks.start("try", "running", for_ever)
    done = []
    for number in range(4):
        done.append(tasks.start("try", str(number), nothing))
        await done[-1].finished()
    newest = tasks.start("try", "newest", for_ever)
    assert tasks.all() == [running, *done[2:], newest]
    with pytest.raises(TaskNotFound):
        tasks.find(done[0].id)
    await tasks.close()


async def test_close_ends_all_and_takes_no_more() -> None:
    tasks = Tasks()
    running = [tasks.start("try", str(number), for_ever) for number in range(3)]
    await tasks.close()
    assert {task.state for task in running} == {TaskState.CANCELLED}
    with pytest.raises(ShuttingDown):
        tasks.start("try", "late", nothing)
    await tasks.close()
