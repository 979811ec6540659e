"""Heads that differ from the one before in the digits of their length alone: read without a parser."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import Any, cast

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelyard.errors import RequestError
from modelyard.gateway.http.connection import Connection
from modelyard.gateway.http.head import Head, Repeated
from modelyard.gateway.http.limits import Limits
from modelyard.gateway.http.reader import HEAD, RequestReader
from modelyard.gateway.http.served import ServedExchange

FIRST = (
    b"POST /v1/chat/completions?a=b HTTP/1.1\r\nhost: a\r\nX: 17\r\nContent-Length:  17 \r\n"
    b"authorization: Bearer content-length\r\n\r\n"
)
Reading = tuple[Any, ...] | str


class _Connection:
    """What a reader asks of its connection."""

    peer = "1.2.3.4:5"
    limits = Limits()

    def __init__(self) -> None:
        self.queued: list[ServedExchange] = []
        self.server = SimpleNamespace(buffered=0)

    def now(self) -> float:
        return 0.0

    def queue(self, exchange: ServedExchange) -> None:
        self.queued.append(exchange)

    def body_done(self, exchange: ServedExchange) -> None: ...


class _Line:
    def __init__(self) -> None:
        self.connection = _Connection()
        self.reader = RequestReader(cast(Connection, self.connection))

    def read(self, data: bytes) -> Reading:
        """What a request is taken for: its fields, or the kind of its refusal."""
        at = 0
        try:
            while at < len(data):
                at = self.reader.take(data, at)
        except (RequestError, httptools.HttpParserError) as error:
            return type(error).__name__
        if not self.connection.queued:
            return "unfinished"
        exchange = self.connection.queued.pop()
        framing = (exchange.length, exchange.keep_alive, exchange.expecting, exchange.http_11)
        target = (exchange.method, exchange.path, exchange.raw_path, exchange.query)
        fields = (exchange.headers.raw, exchange.headers.get(b"content-length"))
        body = None if self.reader.phase != HEAD else b"".join(exchange._parts)
        return *target, *fields, *framing, body, self.reader.body_left, self.reader.phase


def _with_length(digits: bytes) -> bytes:
    return FIRST.replace(b"  17 ", b"  " + digits + b" ")


@st.composite
def _edited(draw: st.DrawFn) -> bytes:
    """The first head with one piece replaced, anywhere."""
    at = draw(st.integers(0, len(FIRST) - 4))
    until = draw(st.integers(at, min(at + 4, len(FIRST) - 4)))
    piece = draw(st.binary(max_size=4) | st.sampled_from([b"0", b"9" * 18, b"9" * 19, b"\r\n", b" ", b"1 7"]))
    return FIRST[:at] + piece + FIRST[until:]


@given(_edited() | st.from_regex(rb"[0-9 ,+x-]{0,20}", fullmatch=True).map(_with_length))
@example(_with_length(b""))
@example(_with_length(b"0"))
@example(_with_length(b"0017"))
@example(_with_length(b"9" * 19))
@example(FIRST.replace(b"  17 ", b"17"))
@example(FIRST.replace(b"X: 17", b"X: 18"))
def test_a_head_is_taken_for_the_same_whatever_came_before(head: bytes) -> None:
    seasoned = _Line()
    assert seasoned.read(FIRST + b"y" * 17)[-2:] == (0, HEAD)
    assert seasoned.read(head + b"z" * 17) == _Line().read(head + b"z" * 17)


@pytest.mark.parametrize("digits", [b"17", b"4", b"100000", b"0"])
def test_a_head_that_differs_in_its_length_alone_is_not_parsed_again(
    digits: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = _Line()
    line.read(FIRST + b"y" * 17)
    monkeypatch.setattr(httptools, "HttpRequestParser", None)
    assert line.read(_with_length(digits))[6] == int(digits)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", id="no length"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", id="chunked"),
        pytest.param(FIRST.replace(b"X: 17", b"expect: 100-continue"), id="the client waits"),
        pytest.param(FIRST.replace(b"X: 17", b"connection: close"), id="the last one"),
        pytest.param(FIRST.replace(b"X: 17", b"X: " + b"1" * 4096), id="large"),
    ],
)
def test_other_heads_are_not_kept(head: bytes) -> None:
    line = _Line()
    line.read(head)
    assert line.reader._repeated is None
    assert line.reader.deadline == inf


def test_two_requests_do_not_share_what_one_of_them_changed() -> None:
    line = _Line()
    first = line.read(FIRST + b"y" * 17)
    line.read(_with_length(b"4") + b"yyyy")
    assert line.read(FIRST + b"y" * 17) == first


def test_the_pattern_is_made_from_the_field_and_not_from_a_value_like_it() -> None:
    assert isinstance(Repeated.of(FIRST, _read(FIRST)), Repeated)
    other = FIRST.replace(b"Bearer content-length", b"Bearer content-length: 17")
    repeated = Repeated.of(other, _read(other))
    assert repeated is not None
    assert repeated.read(other.replace(b"content-length: 17\r\n", b"content-length: 18\r\n")) is None


def _read(raw: bytes) -> Head:
    return RequestReader(cast(Connection, _Connection()))._read_head(raw)
