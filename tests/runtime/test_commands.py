"""What is measured when an instance goes, and how long the end may take."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from compose.test_refused_starts import GGUF
from gateway.live_yard import LiveYard, fake, live_yard
from modelyard.core.state import Instance
from modelyard.engines.base import Files
from modelyard.runtime import commands
from modelyard.runtime.entries import Entry, Progress
from runtime.files_elsewhere import FilesElsewhere
from waiting import until


def measured(yard: LiveYard, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The instances that are measured from now on."""
    names: list[str] = []
    measure = yard.driver.observer.measure

    async def seen(instance: str) -> Mapping[str, int]:
        names.append(instance)
        return await measure(instance)

    monkeypatch.setattr(yard.driver.observer, "measure", seen)
    return names


class TestFootprints:
    async def test_are_taken_once_more_before_a_stop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            names = measured(yard, monkeypatch)
            await yard.unload("a")
            await until(lambda: not yard.state.instances)
            assert names == ["a-1"]

    async def test_are_not_taken_of_what_a_crash_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            names = measured(yard, monkeypatch)
            os.kill(yard.pids("a")[0], signal.SIGKILL)
            await until(lambda: not yard.state.instances)
            assert names == []

    async def test_are_not_kept_of_a_crash_during_the_measurement(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with live_yard({"a": fake()}) as yard:
            instance = await yard.load("a")
            resident = yard.driver.commands.residents[instance.id]
            await until(lambda: yard.driver.footprints._entries)  # what was learned when it became ready
            kept: list[Mapping[str, int]] = []

            async def slow(name: str) -> Mapping[str, int]:
                os.kill(yard.driver.launcher.pids(name)[0], signal.SIGKILL)
                await asyncio.wait({resident.exit}, timeout=20)
                return {"gpu0": 1}

            def keep(entry: Entry, instance: Instance, own: Mapping[str, int]) -> None:
                kept.append(own)

            monkeypatch.setattr(yard.driver.observer, "measure", slow)
            monkeypatch.setattr(yard.driver.observer, "keep", keep)
            await yard.unload("a")
            await until(lambda: kept)
            assert kept == [{}]


class TestTheEnd:
    async def test_does_not_wait_for_a_disk_that_does_not_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Dead(FilesElsewhere):
            """Reads that neither end nor can be cancelled."""

            def __init__(self) -> None:
                self.began, self.answers = asyncio.Event(), asyncio.Event()

            async def fetch(self, entry: Entry, progress: Callable[[Progress], None]) -> Files:
                self.began.set()
                while not self.answers.is_set():
                    try:
                        await self.answers.wait()
                    except asyncio.CancelledError:
                        continue
                return {}

        monkeypatch.setattr(commands, "LATEST", 0.05)
        source = tmp_path / "model.gguf"
        source.write_bytes(GGUF)
        model = {"engine": "llamacpp", "source": str(source), "devices": ["ram"]}
        async with live_yard({"m": model}) as yard:
            dead = yard.driver.commands._files = Dead()
            asked = asyncio.create_task(yard.chat("m"))
            await asyncio.wait_for(dead.began.wait(), 20)
            with capture_logs() as said:
                ending = asyncio.create_task(yard.driver.commands.close())
                done, _ = await asyncio.wait({ending}, timeout=10)
            dead.answers.set()
            await ending
            assert done
            assert [line["count"] for line in said if line["event"] == "commands.late"] == [1]
            await yard.yard.remove_model("m")
            assert (await asked).code


async def test_a_cause_is_found_far_above_the_end_of_a_log() -> None:
    lines = ["error: failed to load model: bad magic", *(f"line {number}" for number in range(150))]
    async with live_yard({"a": fake(parameters={"exit_code": 3, "exit_log": "\n".join(lines)})}) as yard:
        answer = await yard.chat("a")
        assert "a did not start: bad_model: exit code 3" in answer.message
        assert answer.message.count("line") == 8, "what an adapter tells without a word of its own"
        assert "line 149" in answer.message
