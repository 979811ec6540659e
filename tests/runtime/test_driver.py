"""The driver carries out what was decided, whatever goes wrong with a part of it."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from gateway.live_yard import fake, live_yard, until
from modelyard.core import actions as ac
from modelyard.runtime import driver


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
                yard.driver.unload(yard.state.instances["a-1"].version.key)
                await until(lambda: not yard.state.instances)
            assert (await yard.chat("a")).status == 200

    async def test_it_is_told_with_its_traceback(self) -> None:
        def on_note(note: ac.Note) -> None:
            raise ZeroDivisionError

        async with live_yard({"a": fake()}) as yard:
            yard.driver.on_note = on_note
            with capture_logs() as said:
                await yard.load("a")
            failed = [line for line in said if line["event"] == "action.failed"]
            assert failed
            assert failed[0]["exc_info"] is True
            assert "Note(kind=" in failed[0]["action"]
