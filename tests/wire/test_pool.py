"""The pool against real sockets: reuse, framing, deaths, cancellation, flow control."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modelyard.core.types import Address
from modelyard.wire.connection import Call, Headers
from modelyard.wire.errors import Broken, ConnectFailed, ProtocolError
from modelyard.wire.pool import Pool
from waiting import until
from wire.raw_engines import OK, Collect, Peer, always, engine, once, post


@pytest.mark.parametrize("unix", [False, True])
async def test_requests_reuse_one_connection(tmp_path: Path, unix: bool) -> None:
    async with engine(always(OK), tmp_path / "e.sock" if unix else None) as peer:
        pool = Pool(peer.address)
        for _ in range(20):
            sink = Collect()
            call = post(sink)
            await pool.run(call)
            assert (sink.status, sink.body) == (200, b"ok")
            assert call.written
            assert call.head_received
        assert (peer.accepted, pool.open, pool.idle) == (1, 1, 1)
        pool.close()
        assert (pool.open, pool.idle) == (0, 0)


async def test_request_head_is_ours() -> None:
    heads: list[bytes] = []

    async def answering(peer: Peer) -> None:
        head, body = await peer.request()
        heads.append(head + body)
        await peer.send(OK)

    headers = [
        (b"Host", b"evil"),
        (b"Content-Length", b"999"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Connection", b"keep-alive, X-Secret"),
        (b"X-Secret", b"1"),
        (b"Expect", b"100-continue"),
        (b"te", b"trailers"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authorization", b"x"),
        (b"accept", b"*/*"),
    ]
    async with engine(answering) as peer:
        pool = Pool(peer.address)
        await pool.run(Call(b"POST", b"/x?y=1", headers, b"abc", Collect()))
        pool.close()
    assert heads == [
        b"POST /x?y=1 HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\ncontent-length: 3\r\n\r\nabc"
    ]


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"/ HTTP/1.1\r\nx: y", []),
        (b"/a b", []),
        (b"", []),
        (b"/", [(b"a", b"b\r\nx: y")]),
        (b"/", [(b"a", b"b\nx: y")]),
        (b"/", [(b"a", b"b\rc")]),
        (b"/", [(b"a", b"\0")]),
        (b"/", [(b"a\n", b"b")]),
    ],
)
def test_request_that_breaks_framing_is_refused(target: bytes, headers: Headers) -> None:
    with pytest.raises(ValueError, match=r"request line|CR, LF or NUL"):
        Call(b"GET", target, headers, b"", Collect())


async def test_large_body_arrives_whole() -> None:
    got: list[bytes] = []

    async def answering(peer: Peer) -> None:
        got.append((await peer.request())[1])
        await peer.send(OK)

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        body = bytes(range(256)) * 8000
        await pool.run(post(Collect(), body))
        pool.close()
    assert got == [body]


async def test_idle_connection_is_written_before_the_first_suspension() -> None:
    async with engine(always(OK)) as peer:
        pool = Pool(peer.address)
        await pool.run(post(Collect()))
        call = post(Collect())
        running = pool.run(call)
        running.send(None)
        assert call.written
        running.close()  # as a cancelled task would
        assert pool.open == 0


ANSWERS = {
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b"abcde",
        1,
    ),
    "extensions and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n"
        b"0\r\nConnection: close\r\nA: b\r\n\r\n",
        b"abc",
        0,
    ),
    "interim answers": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK, b"ok", 1),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", 1),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", 1),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", b"", 1),
    "connection close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok", 0),
    "http/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", 0),
    "http/1.0 keep-alive": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        b"ok",
        1,
    ),
    "bytes behind the answer": (OK + OK, b"ok", 0),
    "garbage behind the answer": (OK + b"zz", b"ok", 0),
}


@pytest.mark.parametrize("pieces", ["whole", "bytes"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_framing(name: str, pieces: str) -> None:
    answer, body, idle = ANSWERS[name]

    async def answering(peer: Peer) -> None:
        while True:
            await peer.request()
            size = len(answer) if pieces == "whole" else 1
            for start in range(0, len(answer), size):
                await peer.send(answer[start : start + size])
                await asyncio.sleep(0)

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        sink = Collect()
        await pool.run(post(sink))
        assert (sink.body, sink.heads) == (body, 1)
        assert not {name for name, _ in sink.headers} & {b"connection", b"transfer-encoding", b"link", b"a"}
        if "behind" in name:
            await until(lambda: pool.open == 0)
        else:
            assert pool.idle == idle
        await pool.run(post(sink))
        pool.close()


async def test_head_has_no_body_and_keeps_the_connection() -> None:
    async def answering(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + (b"" if head[:4] == b"HEAD" else b"hello")
            )

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        sink, second = Collect(), Collect()
        await pool.run(post(sink, b"", b"HEAD"))
        await pool.run(post(second))
        assert (sink.body, second.body, peer.accepted) == (b"", b"hello", 1)
        assert (b"content-length", b"5") in sink.headers
        pool.close()


async def test_answer_without_length_ends_with_the_connection() -> None:
    async with engine(once(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")) as peer:
        pool = Pool(peer.address)
        sink = Collect()
        await pool.run(post(sink))
        assert sink.body == b"until the end"
        assert pool.open == 0


async def test_headers_named_by_connection_are_stripped() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Hop: 1\r\nX-Stays: 2\r\nConnection: X-Hop\r\nContent-Length: 0\r\n\r\n"
    async with engine(always(answer)) as peer:
        pool = Pool(peer.address)
        sink = Collect()
        await pool.run(post(sink))
        assert sink.headers == [(b"x-stays", b"2"), (b"content-length", b"0")]
        pool.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 099 What\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 4000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 400000,
    ],
)
async def test_malformed_answer_is_a_protocol_error(answer: bytes) -> None:
    async def answering(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await peer.reader.read()  # never the engine's end that ends it

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        with pytest.raises(ProtocolError, match=r"127\.0\.0\.1"):
            await pool.run(post(Collect()))
        assert pool.open == 0
        await asyncio.wait_for(peer.left.wait(), 10)


@pytest.mark.parametrize(
    ("answer", "answered"),
    [
        (b"", False),
        (b"HTT", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n", True),
    ],
)
async def test_answer_that_ends_early_is_broken_and_not_repeated(answer: bytes, answered: bool) -> None:
    async with engine(once(answer)) as peer:
        pool = Pool(peer.address)
        with pytest.raises(Broken) as caught:
            await pool.run(post(Collect()))
        assert caught.value.answered is answered
        assert (peer.accepted, pool.open) == (1, 0)


async def test_reused_connection_that_dies_after_a_byte_is_not_repeated() -> None:
    async def answering(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        await pool.run(post(Collect()))
        with pytest.raises(Broken) as caught:
            await pool.run(post(Collect()))
        assert caught.value.answered
        assert peer.accepted == 1


async def test_dead_reused_connection_is_repeated_once_only() -> None:
    requests = 0

    async def answering(peer: Peer) -> None:
        nonlocal requests
        while True:
            await peer.request()
            requests += 1
            if requests > 1:
                return
            await peer.send(OK)

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        await pool.run(post(Collect()))
        with pytest.raises(Broken) as caught:
            await pool.run(post(Collect()))
        assert not caught.value.answered
        assert (requests, peer.accepted) == (3, 2)


async def test_a_thousand_closes_between_pick_and_write_fail_nothing() -> None:
    # The engine answers one request, swallows the next and leaves: from here, it closed as we wrote.
    async def answering(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        for _ in range(1001):
            sink = Collect()
            await pool.run(post(sink))
            assert sink.body == b"ok"
        assert peer.accepted == 1001
        pool.close()


async def test_a_thousand_closes_right_behind_the_answer_fail_nothing() -> None:
    async with engine(once(OK)) as peer:
        pool = Pool(peer.address)
        for _ in range(1000):
            sink = Collect()
            await pool.run(post(sink))
            assert sink.body == b"ok"
        pool.close()


@pytest.mark.parametrize("last", [b"", b"HTTP/1.1 408 Timeout\r\n\r\n"])
async def test_end_or_bytes_on_an_idle_connection_close_it(last: bytes) -> None:
    leave = asyncio.Event()

    async def answering(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await leave.wait()
        await peer.send(last)
        if last:
            await peer.reader.read()

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        await pool.run(post(Collect()))
        assert pool.idle == 1
        leave.set()
        await until(lambda: (pool.open, pool.idle) == (0, 0))
        await asyncio.wait_for(peer.left.wait(), 10)


async def test_idle_limit_closes_all_with_one_timer() -> None:
    async with engine(always(OK)) as peer:
        pool = Pool(peer.address, idle_limit=0.05)
        await asyncio.gather(*(pool.run(post(Collect())) for _ in range(5)))
        assert pool.idle == 5
        await until(lambda: pool.open == 0)
        await pool.run(post(Collect()))
        assert peer.accepted == 6
        pool.close()


async def test_expired_connection_is_not_used() -> None:
    async with engine(always(OK)) as peer:
        pool = Pool(peer.address, idle_limit=0.0)
        await pool.run(post(Collect()))
        await pool.run(post(Collect()))
        assert peer.accepted == 2
        pool.close()


async def test_connection_is_left_when_the_engine_says_so() -> None:
    """As llama.cpp does with every hundredth answer of a connection."""
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"

    async def answering(peer: Peer) -> None:
        for answer in (OK, OK, last):
            await peer.request()
            await peer.send(answer)

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        for _ in range(9):
            await pool.run(post(Collect()))
        assert (peer.accepted, pool.open) == (3, 0)


async def test_idle_connections_are_bounded_and_the_last_used_goes_first() -> None:
    async with engine(always(OK)) as peer:
        pool = Pool(peer.address, max_idle=2)
        await asyncio.gather(*(pool.run(post(Collect())) for _ in range(6)))
        assert (pool.open, pool.idle) == (2, 2)
        pool.close()


async def test_many_concurrent_calls_get_their_own_answers() -> None:
    async def answering(peer: Peer) -> None:
        while True:
            _, body = await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def one(pool: Pool, number: int) -> None:
        for turn in range(5):
            sink = Collect()
            await pool.run(post(sink, b"%d-%d" % (number, turn)))
            assert sink.body == b"%d-%d" % (number, turn)

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        await asyncio.gather(*(one(pool, number) for number in range(80)))
        assert peer.accepted <= 80 + 5 * 16  # only what exceeds max_idle is opened anew
        pool.close()


def streaming(more: asyncio.Event) -> object:
    async def answering(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        reading = asyncio.ensure_future(peer.reader.read())
        more_wanted = asyncio.ensure_future(more.wait())
        await asyncio.wait({reading, more_wanted}, return_when=asyncio.FIRST_COMPLETED)
        for task in (reading, more_wanted):
            task.cancel()
        if more.is_set():
            await peer.send(b"3\r\ndef\r\n0\r\n\r\n")

    return answering


async def test_cancelling_closes_the_connection() -> None:
    async with engine(streaming(asyncio.Event())) as peer:  # type: ignore[arg-type]
        pool = Pool(peer.address)
        sink = Collect()
        task = asyncio.create_task(pool.run(post(sink)))
        await asyncio.wait_for(sink.first.wait(), 10)
        assert not peer.left.is_set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(peer.left.wait(), 10)
        assert (pool.open, pool.idle) == (0, 0)


async def test_cancelling_in_the_step_of_the_end_spares_the_next_call() -> None:
    async with engine(always(OK)) as peer:
        pool = Pool(peer.address)
        tasks: list[asyncio.Task[None]] = []

        class CancelAtEnd(Collect):
            def on_body(self, data: bytes) -> None:
                asyncio.get_running_loop().call_soon(tasks[0].cancel)

        tasks.append(asyncio.create_task(pool.run(post(CancelAtEnd()))))
        await asyncio.gather(*tasks, return_exceptions=True)
        sink = Collect()
        await pool.run(post(sink))
        assert sink.body == b"ok"
        pool.close()


async def test_close_fails_running_calls() -> None:
    async with engine(streaming(asyncio.Event())) as peer:  # type: ignore[arg-type]
        pool = Pool(peer.address)
        sink = Collect()
        task = asyncio.create_task(pool.run(post(sink)))
        await asyncio.wait_for(sink.first.wait(), 10)
        pool.close()
        with pytest.raises(Broken) as caught:
            await task
        assert caught.value.answered
        with pytest.raises(ConnectFailed, match="closed"):
            await pool.run(post(Collect()))


async def test_what_the_sink_raises_ends_the_call() -> None:
    class Picky(Collect):
        def on_body(self, data: bytes) -> None:
            raise LookupError("no more")

    async with engine(always(OK)) as peer:
        pool = Pool(peer.address)
        with pytest.raises(LookupError):
            await pool.run(post(Picky()))
        assert pool.open == 0
        await asyncio.wait_for(peer.left.wait(), 10)


async def test_paused_call_stops_the_engine_from_writing() -> None:
    total = 64 << 20
    written: list[int] = []  # by connection

    async def answering(peer: Peer) -> None:
        number = len(written)
        written.append(0)
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        block = b"x" * 65536
        while written[number] < total:
            await peer.send(block)
            written[number] += len(block)
        await peer.request()
        await peer.send(OK)

    class Counting(Collect):
        size = 0

        def on_body(self, data: bytes) -> None:
            self.size += len(data)

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        sink, other = Counting(), Counting()
        call = post(sink)
        call.pause()
        task = asyncio.create_task(pool.run(call))
        await until(lambda: bool(written and written[0]))
        await pool.run(post(other))  # begins later and ends first
        assert (other.size, sink.size) == (total, 0)
        assert written[0] < total // 2  # what the kernel and the engine buffer is far below the whole
        call.resume()
        await task
        assert sink.size == total
        await pool.run(post(sink))
        assert peer.accepted == 2
        pool.close()


async def test_pause_in_the_last_piece_leaves_a_usable_connection() -> None:
    async with engine(always(OK)) as peer:
        pool = Pool(peer.address)

        class Pausing(Collect):
            call: Call

            def on_body(self, data: bytes) -> None:
                self.call.pause()

        sink = Pausing()
        sink.call = post(sink)
        await pool.run(sink.call)
        sink.call.resume()
        await pool.run(post(Collect()))
        assert peer.accepted == 1
        pool.close()


async def test_answer_before_the_request_is_written_closes_the_connection() -> None:
    async def answering(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait()

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        sink = Collect()
        await asyncio.wait_for(pool.run(post(sink, b"x" * (64 << 20))), 20)
        assert sink.status == 413
        assert (pool.open, pool.idle) == (0, 0)


async def test_nobody_listens(tmp_path: Path) -> None:
    for address in (Address(port=1), Address(path=str(tmp_path / "none.sock"))):
        pool = Pool(address)
        call = post(Collect())
        with pytest.raises(ConnectFailed, match="cannot connect"):
            await pool.run(call)
        assert not call.written
        assert pool.open == 0


async def test_a_call_runs_once() -> None:
    async with engine(always(OK)) as peer:
        pool = Pool(peer.address)
        call = post(Collect())
        await pool.run(call)
        with pytest.raises(RuntimeError, match="one run"):
            await pool.run(call)
        pool.close()


async def test_fetch() -> None:
    async with engine(always(OK)) as peer:
        pool = Pool(peer.address)
        assert await pool.fetch("GET", "/health", timeout=10) == (200, b"ok")
        with pytest.raises(ProtocolError, match="more than 1 bytes"):
            await pool.fetch("POST", "/x", b"{}", timeout=10, limit=1)
        assert await pool.fetch("GET", "/x", timeout=10, limit=1, cut=True) == (200, b"ok")
        assert pool.open == 0


async def test_fetch_has_a_deadline() -> None:
    async def answering(peer: Peer) -> None:
        await peer.reader.read()

    async with engine(answering) as peer:
        pool = Pool(peer.address)
        with pytest.raises(TimeoutError):
            await pool.fetch("GET", "/health", timeout=0.05)
        assert pool.open == 0
        await asyncio.wait_for(peer.left.wait(), 10)
