"""The driver carries out what was decided, whatever goes wrong with a part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from compose.test_refused_starts import GGUF
from gateway.live_yard import LiveYard, fake, live_yard
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.step import Step
from modelyard.core.types import Need, Spec
from modelyard.engines.base import Files
from modelyard.engines.fake import FakeEngine
from modelyard.errors import DownloadFailed
from modelyard.runtime import driver, notes
from modelyard.runtime.entries import Entry, Progress
from runtime.files_elsewhere import FilesElsewhere
from waiting import until


class TestAnActionThatFails:
    async def test_a_log_that_raises_does_not_keep_an_instance_from_its_stop(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The note that it leaves comes before its stop."""

        def full(*words: Any, **fields: Any) -> NoReturn:
            raise OSError(28, "No space left on device")

        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            with monkeypatch.context() as broken:
                for level in ("debug", "info", "error", "exception"):
                    broken.setattr(driver.log, level, full, raising=False)
                    broken.setattr(notes.log, level, full, raising=False)
                yard.driver.unload(yard.state.instances["a-1"].version.key)
                await until(lambda: not yard.state.instances)
            assert (await yard.chat("a")).status == 200

    async def test_it_is_told_with_its_traceback(self) -> None:
        def on_note(note: ac.Note) -> None:
            raise ZeroDivisionError

        async with live_yard({"a": fake()}) as yard:
            yard.driver.notes.count = on_note
            with capture_logs() as said:
                await yard.load("a")
            failed = [line for line in said if line["event"] == "action.failed"]
            assert failed
            assert failed[0]["exc_info"] is True
            assert "Note(kind=" in failed[0]["action"]


class TestASchedulerThatFails:
    """What it had decided by then is in its state: it is carried out."""

    @staticmethod
    def _broken_after(yard: LiveYard, kind: type[ev.Event], patch: pytest.MonkeyPatch) -> None:
        handlers = yard.driver.scheduler._handlers
        right = handlers[kind]

        def handle(step: Step, event: ev.Event) -> NoReturn:
            right(step, event)
            raise ZeroDivisionError

        patch.setitem(handlers, kind, handle)

    async def test_an_instance_that_was_to_stop_stops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            with monkeypatch.context() as patch, capture_logs() as said:
                self._broken_after(yard, ev.UnloadAsked, patch)
                yard.driver.unload(yard.state.instances["a-1"].version.key)
            (told,) = [line for line in said if line["event"] == "scheduler.failed"]
            assert "UnloadAsked" in told["handled"]
            await until(lambda: not yard.state.instances)

    async def test_a_request_that_was_granted_a_slot_has_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            with monkeypatch.context() as patch:
                self._broken_after(yard, ev.Arrived, patch)
                assert (await yard.chat("a")).status == 200

    async def test_a_change_is_told_that_it_failed_when_all_is_carried_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            (version,) = yard.state.versions
            with monkeypatch.context() as patch:
                self._broken_after(yard, ev.Changed, patch)
                with pytest.raises(ZeroDivisionError):
                    yard.driver.change(ev.Changed((ev.Removed(version),)), ())
            await until(lambda: not yard.state.instances)


class TestASleepRightAfterALoad:
    async def test_the_time_of_the_load_is_learned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is told of a step is told after it: an instance that is put to sleep in it is ready no
        more."""
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            learned: list[tuple[float, str]] = []
            instance = yard.state.instances["a-1"]
            with monkeypatch.context() as patch:
                patch.setattr(instance, "ready_at", inf)
                patch.setattr(
                    yard.driver.commands, "learn", lambda _, took, rung: learned.append((took, rung))
                )
                for fields in ((("seconds", 2.0),), (("seconds", 0.5), ("rung", "level 1"))):
                    yard.driver._note(ac.Note("ready", "a-1", "ready", fields))
            assert learned == [(2.0, ""), (0.5, "level 1")]


class TestAModelThatNobodyThoughtOf:
    async def test_it_does_not_stop_the_start_of_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        estimate = FakeEngine.need

        def need(self: FakeEngine, spec: Spec, files: Files) -> Need:
            if spec.model == "odd":
                raise ZeroDivisionError("float division by zero")
            return estimate(self, spec, files)

        monkeypatch.setattr(FakeEngine, "need", need)
        with capture_logs() as said:
            async with live_yard({"odd": fake(), "a": fake()}) as yard:
                assert (await yard.chat("a")).status == 200
                answer = await yard.chat("odd")
                assert answer.code == "internal_error"
                assert "ZeroDivisionError: float division by zero" in answer.message
        (told,) = [line for line in said if line["event"] == "files.unusable"]
        assert (told["model"], told["exc_info"]) == ("odd", True)


class TestLoads:
    async def test_that_are_cancelled_leave_nothing(self) -> None:
        async with live_yard({"a": fake(parameters={"load_time": 20})}) as yard:
            (version,) = yard.state.versions
            for wait in (True, False):
                asked = asyncio.create_task(yard.driver.load(version, wait=wait))
                await until(lambda: yard.state.instances)
                asked.cancel()
                await asyncio.wait({asked})
                assert yard.driver._asks._asked == {}


class TestProgress:
    async def test_a_second_fetch_does_not_begin_with_the_progress_of_the_first(self, tmp_path: Path) -> None:
        class Broken(FilesElsewhere):
            """Downloads that end half-way."""

            def __init__(self) -> None:
                self.seen: list[dict[str, Progress]] = []

            async def fetch(self, entry: Entry, progress: Callable[[Progress], None]) -> Files:
                self.seen.append(dict(yard.driver.progress))
                progress(Progress(entry.spec.version, 1, 2))
                raise DownloadFailed("the line is cut")

        source = tmp_path / "model.gguf"
        source.write_bytes(GGUF)
        model = {"engine": "llamacpp", "source": str(source), "devices": ["ram"]}
        async with live_yard({"m": model}) as yard:
            broken = yard.driver.commands._files = Broken()
            (version,) = yard.state.versions.values()
            for _ in range(2):
                assert (await yard.chat("m")).code == "download_failed"
                assert len(yard.driver.progress) == 1
                await until(lambda: version.error_now(yard.driver._loop.time()) is None)
            assert broken.seen == [{}, {}]
