"""The journal's ring: what is on disk, what waits for the disk, and what is lost when it takes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.state import State
from modelyard.core.types import Cause, Charge, Device, DeviceKind, OutcomeKind, Policy, Spec
from modelyard.runtime import journal as journals
from modelyard.runtime.journal import Journal
from modelyard.runtime.journal_files import Segments, blocks
from modelyard.runtime.journal_records import Encoder, Ended, Kind
from waiting import until

DEADLINE = 10.0


def line(number: int, size: int = 100) -> bytes:
    text = b'{"t":1.0,"kind":"opened","n":%d,"pad":"' % number
    return text + b"x" * (size - len(text) - 3) + b'"}\n'


def numbers(segments: Segments) -> list[int]:
    text = b"".join(blocks(segments.view()))
    return [json.loads(one)["n"] for one in text.splitlines()]


def used(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # the oldest may go at any moment
            total += path.stat().st_size
    return total


class TestSegments:
    def test_the_oldest_go_when_the_ring_is_full(self, tmp_path: Path) -> None:
        segments = Segments(tmp_path, 40_000)
        for start in range(0, 2000, 50):
            assert segments.append([line(n) for n in range(start, start + 50)]) == (50, None)
            assert used(tmp_path) <= 40_000
        kept = numbers(segments)
        assert kept == list(range(kept[0], 2000))
        assert len(kept) >= 300, "it keeps as much as it may, but for one file"

    def test_another_run_goes_on_where_the_last_one_ended(self, tmp_path: Path) -> None:
        for run in range(3):
            segments = Segments(tmp_path, 40_000)
            segments.append([line(run)])
            segments.close()
        assert numbers(segments) == [0, 1, 2]
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_torn_line_spoils_no_other(self, tmp_path: Path) -> None:
        first = Segments(tmp_path, 40_000)
        first.append([line(1), line(2)])
        (file,) = tmp_path.iterdir()
        os.truncate(file, 150)
        second = Segments(tmp_path, 40_000)
        second.append([line(3)])
        lines = b"".join(blocks(second.view())).splitlines()
        assert [json.loads(lines[0])["n"], json.loads(lines[2])["n"]] == [1, 3]
        assert len(lines) == 3

    def test_a_folder_that_is_deleted_meanwhile_is_made_again(self, tmp_path: Path) -> None:
        segments = Segments(tmp_path / "journal", 40_000)
        segments.append([line(1)])
        (file,) = (tmp_path / "journal").iterdir()
        file.unlink()
        assert segments.append([line(2)]) == (1, None)
        assert numbers(segments) == [2]

    def test_a_reader_passes_over_what_is_deleted_meanwhile(self, tmp_path: Path) -> None:
        segments = Segments(tmp_path, 40_000)
        segments.append([line(n) for n in range(100)])
        reading = blocks(segments.view())
        segments.append([line(n) for n in range(100, 500)])
        kept = [json.loads(one)["n"] for block in reading for one in block.splitlines()]
        assert kept == list(range(100 - len(kept), 100))

    def test_every_file_but_the_first_begins_with_what_there_is(self, tmp_path: Path) -> None:
        segments = Segments(tmp_path, 40_000)
        rooms = set()

        def first(room: int) -> list[bytes]:
            rooms.add(room)
            return [line(-1, room)]

        segments.append([line(n) for n in range(20)], first)
        assert numbers(segments) == [*range(20)]
        for start in range(20, 2000, 45):
            assert segments.append([line(n) for n in range(start, start + 45)], first) == (45, None)
            assert used(tmp_path) <= 40_000
        for path, size in segments.view():
            assert path.read_bytes()[:size].startswith(line(-1, 1250)[:20])
        kept = [number for number in numbers(segments) if number >= 0]
        assert kept == list(range(kept[0], 2000))
        assert len(kept) >= 200
        assert rooms == {1250}

    def test_a_file_that_is_made_again_begins_with_what_there_is(self, tmp_path: Path) -> None:
        segments = Segments(tmp_path, 40_000)
        segments.append([line(1)], lambda _: [line(0)])
        (file,) = tmp_path.iterdir()
        file.unlink()
        segments.append([line(2)], lambda _: [line(0)])
        assert numbers(segments) == [0, 2]

    def test_what_a_file_begins_with_is_written_once_the_disk_takes_it(self, tmp_path: Path) -> None:
        segments = Segments(tmp_path, 40_000)
        segments.append([line(n) for n in range(50)])
        with largest_file(50):
            done, error = segments.append([line(50)], lambda _: [line(-1)])
        assert (done, isinstance(error, OSError)) == (0, True)
        assert segments.append([line(50)], lambda _: [line(-1)]) == (1, None)
        assert numbers(segments) == [*range(50), -1, 50]

    def test_files_are_for_their_owner_alone(self, tmp_path: Path) -> None:
        Segments(tmp_path / "journal", 40_000).append([line(1)])
        (file,) = (tmp_path / "journal").iterdir()
        assert (file.stat().st_mode & 0o777, (tmp_path / "journal").stat().st_mode & 0o777) == (0o600, 0o700)

    def test_a_write_that_does_not_fit_is_taken_back(self, tmp_path: Path) -> None:
        segments = Segments(tmp_path, 400_000)
        with largest_file(1050):
            done, error = segments.append([line(n) for n in range(20)])
        assert (done, isinstance(error, OSError)) == (0, True)
        assert used(tmp_path) == 0, "no part of it is left"
        assert segments.append([line(7)]) == (1, None)
        assert numbers(segments) == [7]


class largest_file:
    """No file of this process may grow beyond so many bytes: the stand-in for a full disk."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)
        signal.signal(signal.SIGXFSZ, self._handler)


@asynccontextmanager
async def opened(folder: Path, size: int = 1_000_000) -> AsyncIterator[Journal]:
    journal = Journal(folder, size)
    journal.open()
    try:
        yield journal
    finally:
        await journal.close()


async def records(journal: Journal) -> list[dict[str, Any]]:
    return [json.loads(one) for block in await journal.read() for one in block.splitlines()]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "EVERY", 0.01)
    monkeypatch.setattr(journals, "RETRY", 0.01)


def served_at_once(journal: Journal, request: str) -> None:
    arrived = ev.Arrived(request, "a@1")
    journal.step(1.0, arrived, [ac.Grant(request, "a-1", 1, 0.0, 0.0)], State(), {})
    journal.ended(Ended(request, "a@1", "chat", 1.0, "ok", 1, "a-1"))


class TestJournal:
    async def test_the_last_of_those_that_were_served_at_once_are_told_when_somebody_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journals, "PLAIN", 2)
        async with opened(tmp_path) as journal:
            for request in ("r1", "r2", "r3"):
                served_at_once(journal, request)
            journal.say(Kind.TURNED_AWAY, request="r4", code="not_found")
            told = [(one["kind"], one.get("request")) for one in await records(journal)]
            assert told == [
                ("opened", None),
                ("turned_away", "r4"),
                *(("arrived", "r2"), ("end", "r2"), ("arrived", "r3"), ("end", "r3")),
            ]
            assert len(await records(journal)) == len(told), "once"

    async def test_what_has_happened_can_be_read_at_once_and_after_the_end(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as journal:
            journal.say(Kind.TURNED_AWAY, request="r1", code="not_found")
            assert [one["kind"] for one in await records(journal)] == ["opened", "turned_away"]
        kept = [one["kind"] for one in await records(Journal(tmp_path, 1_000_000))]
        assert kept == ["opened", "turned_away", "closed"]

    async def test_a_disk_that_takes_nothing_costs_the_oldest_and_is_said_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(journals, "UNWRITTEN", 100)
        folder = tmp_path / "journal"
        folder.write_text("a file where the folder should be")
        async with opened(folder) as journal:
            await until(lambda: journal.problem)
            for number in range(150):
                journal.say(Kind.TURNED_AWAY, request=f"r{number}", code="not_found")
            newest = [one["request"] for one in await records(journal)]
            assert journal.lost == 51  # `opened` is one of them
            assert newest == [f"r{number}" for number in range(50, 150)], "what is not on disk can be read"
            folder.unlink()
            await until(lambda: not journal.problem)
            journal.say(Kind.TURNED_AWAY, request="r150", code="not_found")
            written = await records(journal)
            (lost,) = [one for one in written if one["kind"] == "lost"]
            assert lost["count"] == journal.lost == 51
            assert [one["request"] for one in written if "request" in one] == [
                f"r{number}" for number in range(50, 151)
            ]
        output = capsys.readouterr().out
        assert output.count("journal.not_written") == 1
        assert output.count("journal.written_again") == 1

    async def test_a_disk_that_fills_up_and_has_room_again(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as journal:
            await records(journal)
            with largest_file(used(tmp_path) + 10):
                journal.say(Kind.TURNED_AWAY, request="r1", code="not_found")
                await until(lambda: journal.problem)
                assert "large" in journal.problem
            await until(lambda: not journal.problem)
            assert [one["kind"] for one in await records(journal)] == ["opened", "turned_away"]
            assert journal.lost == 0, "it waited in memory"

    async def test_a_reader_does_not_wait_for_more_to_gather(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journals, "EVERY", 600.0)
        monkeypatch.setattr(journals, "PATIENCE", 600.0)
        async with asyncio.timeout(DEADLINE), opened(tmp_path) as journal:
            assert [one["kind"] for one in await records(journal)] == ["opened"]

    async def test_a_reader_waits_for_what_is_being_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began, gate, append = threading.Event(), threading.Event(), Segments.append

        def slow(
            self: Segments, lines: Sequence[bytes], first: Callable[[int], list[bytes]]
        ) -> tuple[int, OSError | None]:
            began.set()
            gate.wait(DEADLINE)
            return append(self, lines, first)

        monkeypatch.setattr(Segments, "append", slow)
        monkeypatch.setattr(journals, "PATIENCE", 600.0)
        async with opened(tmp_path) as journal:
            await until(began.is_set)
            reading = asyncio.create_task(records(journal))
            await until(lambda: journal._waiters)
            gate.set()
            async with asyncio.timeout(DEADLINE):
                assert [one["kind"] for one in await reading] == ["opened"]

    async def test_a_broken_disk_does_not_hold_up_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journals, "PATIENCE", 600.0)
        folder = tmp_path / "journal"
        folder.write_text("a file where the folder should be")
        async with asyncio.timeout(DEADLINE), opened(folder) as journal:
            journal.say(Kind.TURNED_AWAY, request="r1", code="not_found")
        assert journal.problem

    async def test_a_ring_that_turned_over_still_says_what_there_is(self, tmp_path: Path) -> None:
        spec, gone = Spec("a", "0" * 12, "fake", slots=4), Spec("b", "1" * 12, "fake")
        device = Device("gpu0", DeviceKind.DECLARED, 100, 90)
        events: list[tuple[ev.Event, list[ac.Action]]] = [
            (ev.DeviceAdded(device), []),
            (ev.Changed((ev.Added(spec, Policy()), ev.Added(gone, Policy()))), []),
            (ev.Tick(), [ac.Start("a-1", 1, spec.version, (Charge("gpu0", 60),), 0.0, "why")]),
            (ev.Ready("a-1", 1), [ac.Note("ready", "a-1", "ready", (("model", "a"), ("seconds", 3.5)))]),
            (ev.Removed(gone.version), []),
        ]
        async with opened(tmp_path, 40_000) as journal:
            for event, actions in events:
                journal.step(1.0, event, actions, State(), {})
            for _ in range(20):
                for _ in range(25):
                    journal.say(Kind.TURNED_AWAY, request="r1", pad="x" * 100)
                kept = await records(journal)
                assert used(tmp_path) <= 40_000
        assert not {"opened", "device", "model_added"} & {one["kind"] for one in kept}, "it turned over"
        found = {one.get("device") or one["model"]: one for one in kept if one["kind"] == "snapshot"}
        assert kept[0]["kind"] == "snapshot"
        assert found.keys() == {"gpu0", "a"}
        assert found["gpu0"]["budget"] == 90
        assert [found["a"][name] for name in ("slots", "placement", "load")] == [4, {"gpu0": 60}, 3.5]

    async def test_what_there_is_takes_a_part_of_a_file_at_most(self, tmp_path: Path) -> None:
        async with opened(tmp_path, 40_000) as journal:
            specs = [Spec(f"m{number}", "0" * 12, "fake") for number in range(100)]
            journal.step(1.0, ev.Changed(tuple(ev.Added(one, Policy()) for one in specs)), [], State(), {})
            start = ac.Start("m7-1", 1, specs[7].version, (Charge("gpu0", 60),), 0.0, "why")
            journal.step(1.0, ev.Tick(), [start], State(), {})
            await records(journal)
            for _ in range(25):
                journal.say(Kind.TURNED_AWAY, request="r1", pad="x" * 100)
            told = [one["model"] for one in await records(journal) if one["kind"] == "snapshot"]
            assert told[0] == "m7", "the one that was started last first"
            assert 5 < len(told) / told.count("m7") < 20, "in each file"
            assert used(tmp_path) <= 40_000

    async def test_a_record_that_cannot_be_written_down_costs_itself_only(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as journal:
            journal.say(Kind.TURNED_AWAY, request=object())
            journal.say(Kind.TURNED_AWAY, request="r2")
            assert [one.get("request") for one in await records(journal)] == [None, "r2"]


KILLED = """
import asyncio, sys
from pathlib import Path
from modelyard.runtime import journal as journals
from modelyard.runtime.journal_records import Kind
journals.EVERY = 0.0
async def main():
    journal = journals.Journal(Path(sys.argv[1]), 300_000)
    journal.open()
    while True:
        for _ in range(20):
            journal.say(Kind.TURNED_AWAY, request="r1", pad="x" * 2000)
        await asyncio.sleep(0)
asyncio.run(main())
"""


async def test_a_writer_that_is_killed_leaves_a_journal_that_can_be_read(tmp_path: Path) -> None:
    """At whatever moment: every line but a torn last one is whole, and the next run goes on behind it."""
    folder = tmp_path / "journal"
    for run in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)])
        try:
            before = used(folder) if folder.exists() else 0
            await until(lambda: folder.exists() and used(folder) != before)  # noqa: B023
        finally:
            process.kill()
            process.wait(DEADLINE)
        torn = 0
        for path in folder.iterdir():
            for text in path.read_bytes().splitlines():
                try:
                    json.loads(text)
                except ValueError:
                    torn += 1
        assert torn <= run + 1
    async with opened(folder, 300_000) as journal:
        journal.say(Kind.TURNED_AWAY, request="last")
        text = b"".join(await journal.read())
        assert json.loads(text.splitlines()[-1])["request"] == "last"


class TestRecords:
    def test_an_engine_s_output_is_not_kept(self) -> None:
        detail = "exit code 1\nPROMPT: my secret\nthe end"
        exited = ev.Exited("a-1", 1, Cause.CRASHED, detail)
        actions: list[ac.Action] = [
            ac.Note("failed", "a-1", f"crashed: {detail}", (("model", "a"), ("cause", "crashed"))),
            ac.Refuse("r1", "load_failed", f"a did not start: crashed: {detail}"),
            ac.Release("a-1", 2, 1.0, f"crashed: {detail}"),
        ]
        told = [json.loads(one) for one in Encoder().step(1.0, exited, actions, "", None)]
        assert "secret" not in str(told)
        assert [one["kind"] for one in told] == ["exited", "failed", "refuse", "release"]
        assert told[2]["reason"] == "a did not start: crashed: exit code 1"

    def test_an_attempt_that_went_well_is_told_with_the_end_of_its_request(self) -> None:
        done, died = (ev.Finished("r1", "a-1", 1, kind) for kind in (OutcomeKind.DONE, OutcomeKind.DIED))
        assert not Encoder().tells(done)
        assert Encoder().tells(died)
        stop = ac.Stop("a-1", 2, 1.0, "drained")
        (told,) = Encoder().step(1.0, done, [stop], "", None)
        assert json.loads(told)["kind"] == "stop"

    def test_quiet_events_are_told_only_with_what_they_caused(self) -> None:
        assert not Encoder().tells(ev.Tick())

    def test_who_waits_is_forgotten_at_the_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modelyard.runtime.journal_records.REMEMBERED", 10)
        encoder = Encoder()
        for number in range(50):
            encoder.step(1.0, ev.Tick(), [ac.Start(f"a-{number}", 1, "a@1", (), 1.0, "why")], "", None)
        assert len(encoder._versions) == 10
