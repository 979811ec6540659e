"""What every Launcher promises: derive from `LauncherContract` and give it a `launcher` fixture (opened)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from launchers.engine_scripts import FLOOD, PATIENT, STUBBORN, launch, script
from launchers.process_table import alive
from modelyard.engines.base import Exit
from modelyard.launchers.base import Launcher, LaunchFailed
from waiting import until


class Exits:
    """Records what `on_exit` is told."""

    def __init__(self, launcher: Launcher) -> None:
        self.seen: list[tuple[str, Exit]] = []
        launcher.on_exit = lambda instance, exit: self.seen.append((instance, exit))


class LauncherContract:
    async def test_starts_and_stops(self, launcher: Launcher, tmp_path: Path) -> None:
        exits = Exits(launcher)
        await launcher.start(launch("one", script(tmp_path, PATIENT)))
        pids = launcher.pids("one")
        assert all(alive(pid) for pid in pids)
        await launcher.stop("one", grace=5)
        assert [pid for pid in pids if alive(pid)] == []
        assert launcher.pids("one") == []
        assert exits.seen == [("one", Exit(code=None, signal=15))]

    async def test_gives_each_instance_its_own_address(self, launcher: Launcher, tmp_path: Path) -> None:
        argv = script(tmp_path, PATIENT)
        addresses = await asyncio.gather(*(launcher.start(launch(f"i{n}", argv)) for n in range(5)))
        assert len({str(address) for address in addresses}) == 5
        assert all(address.port for address in addresses)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("raise SystemExit(0)", Exit(code=0)),
            ("raise SystemExit(37)", Exit(code=37)),
            ("import os; os.kill(os.getpid(), 11)", Exit(code=None, signal=11)),
        ],
    )
    async def test_reports_how_an_engine_ended_by_itself(
        self, launcher: Launcher, tmp_path: Path, text: str, expected: Exit
    ) -> None:
        exits = Exits(launcher)
        await launcher.start(launch("one", script(tmp_path, text)))
        await until(lambda: exits.seen)
        await launcher.stop("one", grace=0)
        assert exits.seen == [("one", expected)]

    async def test_never_reports_an_exit_before_start_returned(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        exits = Exits(launcher)
        for n in range(10):
            await launcher.start(launch(f"i{n}", ("/bin/true",)))
            assert f"i{n}" not in [instance for instance, _ in exits.seen]
        await until(lambda: len(exits.seen) == 10)

    async def test_stop_is_idempotent(self, launcher: Launcher, tmp_path: Path) -> None:
        exits = Exits(launcher)
        await launcher.stop("never-started", grace=5)
        await launcher.start(launch("one", script(tmp_path, PATIENT)))
        await asyncio.gather(*(launcher.stop("one", grace=5) for _ in range(3)))
        await launcher.stop("one", grace=5)
        assert len(exits.seen) == 1

    async def test_kills_what_ignores_term_after_the_grace(self, launcher: Launcher, tmp_path: Path) -> None:
        exits = Exits(launcher)
        await launcher.start(launch("one", script(tmp_path, STUBBORN)))
        await until(lambda: "up" in launcher.tail("one"))
        await launcher.stop("one", grace=0.1)
        assert exits.seen == [("one", Exit(code=None, signal=9))]

    async def test_a_second_stop_shortens_the_grace(self, launcher: Launcher, tmp_path: Path) -> None:
        await launcher.start(launch("one", script(tmp_path, STUBBORN)))
        await until(lambda: "up" in launcher.tail("one"))
        async with asyncio.timeout(10):
            await asyncio.gather(launcher.stop("one", grace=600), launcher.stop("one", grace=0))

    async def test_an_instance_can_start_again_after_its_stop(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        exits = Exits(launcher)
        for _ in range(3):
            await launcher.start(launch("one", script(tmp_path, PATIENT)))
            await launcher.stop("one", grace=5)
        assert len(exits.seen) == 3

    async def test_refuses_to_start_what_runs(self, launcher: Launcher, tmp_path: Path) -> None:
        await launcher.start(launch("one", script(tmp_path, PATIENT)))
        pids = launcher.pids("one")
        with pytest.raises(LaunchFailed, match="one is running already"):
            await launcher.start(launch("one", script(tmp_path, PATIENT)))
        assert all(alive(pid) for pid in pids)

    async def test_a_program_that_is_not_there_names_itself_and_leaves_nothing(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        exits = Exits(launcher)
        with pytest.raises(LaunchFailed, match=r"no-such-engine.*No such file"):
            await launcher.start(launch("one", ("no-such-engine", "--port", "1")))
        assert launcher.pids("one") == []
        assert exits.seen == []
        await launcher.start(launch("one", script(tmp_path, PATIENT)))

    async def test_a_cancelled_start_leaves_nothing(self, launcher: Launcher, tmp_path: Path) -> None:
        exits = Exits(launcher)
        starting = asyncio.create_task(launcher.start(launch("one", script(tmp_path, PATIENT))))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert launcher.pids("one") == []
        assert exits.seen == []
        await launcher.start(launch("one", script(tmp_path, PATIENT)))

    async def test_output_is_kept_after_the_end(self, launcher: Launcher, tmp_path: Path) -> None:
        text = "import sys\nprint('one')\nprint('two')\nprint('three', file=sys.stderr)"
        exits = Exits(launcher)
        assert launcher.log("one") is None
        assert launcher.tail("one") == ""
        await launcher.start(launch("one", script(tmp_path, text)))
        await until(lambda: exits.seen)
        await launcher.stop("one", grace=0)
        assert sorted(launcher.tail("one").split("\n")) == ["one", "three", "two"]
        assert len(launcher.tail("one", lines=2).split("\n")) == 2

    async def test_a_flood_of_output_neither_hangs_the_engine_nor_grows_the_file(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        await launcher.start(launch("one", script(tmp_path, FLOOD)))
        await until(lambda: launcher.tail("one", lines=1) == "last words", deadline=20)
        log = launcher.log("one")
        assert log is not None
        content = log.read_bytes()
        assert len(content) <= 4 * 1024 * 1024
        assert content.startswith(b"first words\n")
        assert b"left out" in content

    async def test_close_stops_everything(self, launcher: Launcher, tmp_path: Path) -> None:
        exits = Exits(launcher)
        for n in range(4):
            await launcher.start(launch(f"i{n}", script(tmp_path, PATIENT)))
        pids = [pid for n in range(4) for pid in launcher.pids(f"i{n}")]
        await launcher.close()
        assert [pid for pid in pids if alive(pid)] == []
        assert len(exits.seen) == 4
        with pytest.raises(LaunchFailed, match="closed"):
            await launcher.start(launch("late", script(tmp_path, PATIENT)))
        await launcher.close()
