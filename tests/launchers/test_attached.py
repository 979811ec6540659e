"""What runs already, as the launcher contract has it; and that processes are started as ever beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from launchers.contract import Exits, LauncherContract
from modelyard.core.types import Address, Cause
from modelyard.engines.base import Attach, Call, Exit, Held
from modelyard.launchers import attached
from modelyard.launchers.attached import WithAttached
from modelyard.launchers.base import Launch, LaunchFailed
from modelyard.launchers.local import LocalLauncher
from modelyard.wire.pool import Pool
from waiting import until
from wire.certificates import certificate, front
from wire.raw_engines import OK, Engine, Peer, always, engine

NO = b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno model"
LOAD = Call("POST", "/load", b"{}")
UNLOAD = Call("POST", "/unload", b"{}")


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[WithAttached]:
    launcher = WithAttached(LocalLauncher(tmp_path / "data"))
    await launcher.open()
    yield launcher
    await launcher.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at all the time."""
    monkeypatch.setattr(attached, "EVERY", 0.01)
    monkeypatch.setattr(attached, "AGAIN", 0.01)


class TestProcesses(LauncherContract):
    """They are started as if there were nothing else."""


class Seen:
    """A server that notes what it was asked, and answers with `answer`."""

    def __init__(self, answer: bytes = OK) -> None:
        self.lines: list[str] = []
        self.answer = answer

    async def __call__(self, peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            self.lines.append(head.split(b" HTTP")[0].decode())
            await peer.send(self.answer)


def launch(at: Engine, *, load: bool = True) -> Launch:
    return launch_of(f"http://127.0.0.1:{at.address.port}/base/", load=load)


def launch_of(url: str, *, load: bool = True, ca: str = "") -> Launch:
    what = Attach(url, load=(LOAD,), unload=(UNLOAD,), ca=ca) if load else Attach(url, ca=ca)
    return Launch("one", lambda address: what, unix=True, health="/up")


async def test_it_is_loaded_before_it_counts_as_started_and_unloaded_at_the_end(
    launcher: WithAttached,
) -> None:
    exits, seen = Exits(launcher), Seen()
    async with engine(seen) as at:
        address = await launcher.start(launch(at))
        assert address == Address(host="127.0.0.1", port=at.address.port, scheme="http", base="/base")
        assert seen.lines == ["GET /base/up", "POST /base/load"]
        assert (launcher.pids("one"), launcher.log("one"), launcher.tail("one")) == ([], None, "")
        with pytest.raises(LaunchFailed, match="one is running already"):
            await launcher.start(launch(at))
        await asyncio.gather(*(launcher.stop("one", grace=5) for _ in range(3)))
        assert seen.lines[2:] == ["POST /base/unload"]
        assert exits.seen == [("one", Exit(code=0))]
        await launcher.start(launch(at))
        await launcher.close()
        assert seen.lines[3:] == ["GET /base/up", "POST /base/load", "POST /base/unload"]
        with pytest.raises(LaunchFailed, match="closed"):
            await launcher.start(launch(at))


async def test_one_that_does_not_load_is_not_started(launcher: WithAttached) -> None:
    exits = Exits(launcher)
    async with engine(Seen(NO)) as at:
        with pytest.raises(LaunchFailed, match="/base answered /load with 404: no model") as failed:
            await launcher.start(launch(at))
        await until(at.left.is_set)  # no connection is kept
    assert failed.value.status == 404
    await launcher.stop("one", grace=5)
    assert exits.seen == []


async def test_a_load_that_is_cancelled_leaves_nothing(launcher: WithAttached) -> None:
    exits, loading = Exits(launcher), asyncio.Event()

    async def answering(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        loading.set()
        await peer.request()

    async with engine(answering) as at:
        starting = asyncio.create_task(launcher.start(launch(at)))
        await loading.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await until(at.left.is_set)
    await launcher.stop("one", grace=5)
    assert exits.seen == []


@pytest.mark.parametrize("ending", ["fails", "is cancelled", "is stopped"])
async def test_what_was_loaded_is_unloaded_when_its_start_fails(launcher: WithAttached, ending: str) -> None:
    """After the load, it is asked what it holds: there the start ends."""
    exits, asking, lines = Exits(launcher), asyncio.Event(), list[str]()

    async def answering(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            lines.append(head.split(b" HTTP")[0].decode())
            if head.startswith(b"GET /ps"):
                asking.set()
                await peer.send(b"what?\r\n\r\n" if ending == "fails" else b"")
            else:
                await peer.send(OK)

    async with engine(answering) as at:
        held = Held(Call("GET", "/ps"), of_bytes)
        what = Attach(f"http://127.0.0.1:{at.address.port}", load=(LOAD,), unload=(UNLOAD,), held=held)
        starting = asyncio.create_task(
            launcher.start(Launch("one", lambda _: what, unix=False, health="/up"))
        )
        await asyncio.wait_for(asking.wait(), 10)
        if ending == "is cancelled":
            starting.cancel()
        elif ending == "is stopped":
            await launcher.stop("one", grace=5)
        with pytest.raises(asyncio.CancelledError if ending == "is cancelled" else LaunchFailed):
            await starting
        assert lines == ["GET /up", "POST /load", "GET /ps", "POST /unload"]
    await launcher.stop("one", grace=5)
    assert exits.seen == []


async def test_one_that_is_stopped_as_it_answers_is_not_looked_at_any_more(
    launcher: WithAttached, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Pool):
        async def fetch(self, *words: Any, **more: Any) -> tuple[int, bytes]:
            answer = await super().fetch(*words, **more)
            await launcher.stop("one", grace=5)
            return answer

    monkeypatch.setattr(attached, "Pool", Stopping)
    exits = Exits(launcher)
    async with engine(always(OK)) as at:
        with pytest.raises(LaunchFailed, match="was left while it loaded"):
            await launcher.start(launch(at, load=False))
    assert exits.seen == []


async def test_nobody_there_is_said_at_once(launcher: WithAttached) -> None:
    with pytest.raises(LaunchFailed, match=r"cannot connect to http://127.0.0.1:1/x: ") as failed:
        await launcher.start(launch_of("http://127.0.0.1:1/x"))
    assert failed.value.cause is Cause.LAUNCH  # it may come


async def test_a_certificate_that_nobody_knows_is_not_tried_again(
    launcher: WithAttached, tmp_path: Path
) -> None:
    made, context = certificate(tmp_path)
    async with engine(always(OK), tmp_path / "e"), front(context, tmp_path / "e") as port:
        with pytest.raises(LaunchFailed, match="is not trusted: self-signed certificate") as failed:
            await launcher.start(launch_of(f"https://localhost:{port}"))
        assert failed.value.cause is Cause.BAD_ARGUMENTS
        await launcher.start(launch_of(f"https://localhost:{port}", ca=str(made)))
        await launcher.stop("one", grace=5)


@pytest.mark.usefixtures("quick")
async def test_what_it_answers_may_be_long_and_is_not_read_to_its_end(launcher: WithAttached) -> None:
    exits, looks = Exits(launcher), 0

    async def answering(peer: Peer) -> None:
        nonlocal looks
        await peer.request()
        looks += 1
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + bytes(1 << 17))
        await peer.request()

    async with engine(answering) as at:
        await launcher.start(launch(at, load=False))
        await until(lambda: looks > 3)
        assert exits.seen == []
        await launcher.stop("one", grace=5)


@pytest.mark.usefixtures("quick")
async def test_it_is_gone_after_several_looks_and_not_after_one(launcher: WithAttached) -> None:
    exits, seen = Exits(launcher), Seen()
    async with engine(seen) as at:
        started = await launcher.start(launch(at))
        await until(lambda: len(seen.lines) > 10)
    await until(lambda: exits.seen)
    assert exits.seen == [("one", Exit(code=None))]
    assert launcher.tail("one").startswith(f"cannot connect to {started}: ")
    assert "POST /base/unload" not in seen.lines
    await launcher.stop("one", grace=5)
    assert len(exits.seen) == 1
    assert launcher.tail("one") == ""


async def test_a_short_absence_is_forgiven(launcher: WithAttached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "EVERY", 0.01)
    monkeypatch.setattr(attached, "AGAIN", 0.5)  # time to come back in
    exits, seen = Exits(launcher), Seen()
    async with engine(seen) as at:
        await launcher.start(launch(at, load=False))
        port = at.address.port
    await until(lambda: launcher.tail("one"))
    again = Seen()
    server = await asyncio.start_server(lambda r, w: again(Peer(r, w)), "127.0.0.1", port)
    await until(lambda: again.lines)
    await until(lambda: launcher.tail("one") == "")
    assert exits.seen == []
    await launcher.stop("one", grace=5)
    server.close()


def of_bytes(body: bytes) -> dict[str, int] | None:
    return {"ram": int(body)} if body != b"gone" else None


@pytest.mark.usefixtures("quick")
async def test_what_a_model_holds_is_asked_for_and_one_that_holds_nothing_is_gone(
    launcher: WithAttached,
) -> None:
    held = Held(Call("GET", "/ps"), of_bytes)
    exits, seen = Exits(launcher), Seen(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n42")
    async with engine(seen) as at:
        what = Attach(f"http://127.0.0.1:{at.address.port}", load=(LOAD,), unload=(UNLOAD,), held=held)
        asked = Launch("one", lambda address: what, unix=False, health="/up")
        assert launcher.held("one") is None
        await launcher.start(asked)
        assert seen.lines[:3] == ["GET /up", "POST /load", "GET /ps"]
        assert launcher.held("one") == {"ram": 42}
        seen.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhat?"
        await until(lambda: len(seen.lines) > 10)
        assert launcher.held("one") == {"ram": 42}, "what is not understood changes nothing"
        seen.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngone"
        await until(lambda: exits.seen)
        assert exits.seen == [("one", Exit(code=None))]
        assert launcher.tail("one").endswith("has put the model out of its memory")
        await launcher.stop("one", grace=5)
        assert "POST /unload" not in seen.lines
        with pytest.raises(LaunchFailed, match="out of its memory"):
            await launcher.start(asked)
    assert launcher.held("one") is None


@pytest.mark.parametrize("url", ["ftp://h", "http://", "h:80", "http://h:0", "http://h:port", "http://h/a b"])
async def test_an_url_that_is_none_is_refused(launcher: WithAttached, url: str) -> None:
    with pytest.raises(LaunchFailed) as failed:
        await launcher.start(launch_of(url))
    assert failed.value.cause is Cause.BAD_ARGUMENTS
