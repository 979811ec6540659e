"""SSE framing: whole events only, wherever the stream is torn; the token counts at its end."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.wire.errors import ProtocolError
from modelyard.wire.sse import TAIL, Framer, last_usage

_EOL = st.sampled_from([b"\n", b"\r\n", b"\r"])
_LINE = st.sampled_from([b"data: x", b": beat", b"event: e", b"data:", b""])


def _blank_line_ends(stream: bytes) -> set[int]:
    """Offsets where an empty line has just ended, by the specification's own words."""
    ends = set()
    start = 0
    for match in re.finditer(rb"\r\n|\n|\r", stream):
        if match.start() == start:
            ends |= {match.end(), match.end() - 1} if match.group() == b"\r\n" else {match.end()}
        start = match.end()
    return ends


@given(st.lists(st.tuples(_LINE, _EOL)), st.lists(st.integers(1, 9), min_size=1))
def test_only_whole_events_pass(lines: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    stream = b"".join(line + eol for line, eol in lines)
    framer = Framer()
    passed = b""
    at = turn = 0
    ends = _blank_line_ends(stream)
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        turn += 1
        whole = framer.feed(stream[at : at + size])
        at = min(at + size, len(stream))
        passed += whole
        assert stream.startswith(passed)
        assert framer.pending == at - len(passed)
        if whole:
            assert len(passed) in ends
        # Nothing that is whole is held back.
        assert not [end for end in ends if len(passed) < end <= at and stream[end - 1 : end + 1] != b"\r\n"]


@pytest.mark.parametrize("separator", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_separators_torn_at_every_byte(separator: bytes) -> None:
    stream = b"data: a" + separator + b"data: b" + separator
    for cut in range(len(stream) + 1):
        framer = Framer()
        assert framer.feed(stream[:cut]) + framer.feed(stream[cut:]) == stream
        assert framer.pending == 0


def test_whole_data_is_passed_on_uncopied() -> None:
    data = b"data: a\n\ndata: b\n\n"
    assert Framer().feed(data) is data


def test_unfinished_event_is_bounded() -> None:
    framer = Framer(limit=10)
    assert framer.feed(b"data: 7890") == b""
    with pytest.raises(ProtocolError, match="longer than 10 bytes"):
        framer.feed(b"1")


def test_comments_are_no_events() -> None:
    framer = Framer()
    framer.feed(b": data: beat\n\nevent: ping\n\n")
    assert not framer.events_seen
    framer.feed(b"event: x\nda")
    assert not framer.events_seen
    framer.feed(b"ta: 1\n\n")
    assert framer.events_seen


def test_tail_is_the_end_and_bounded() -> None:
    framer = Framer()
    framer.feed(b"data: " + b"a" * 9000 + b"\n\n")
    framer.feed(b"data: [DONE]\n\n")
    assert len(framer.tail) == TAIL
    assert framer.tail.endswith(b"aa\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b"", None),
        (b'data: {"usage":null}\n\n', None),
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}', (3, 4)),
        (
            b'data: {"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
            b'data: {"usage": {"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":1},'
            b'"completion_tokens":4}}'
            b'\n\ndata: {"usage":null}\n\ndata: [DONE]\n\n',
            (3, 4),
        ),
        (b'"cut":1}],"usage":{"input_tokens":3,"output_tokens":4}}\n\n', (3, 4)),
        (b'{"content":"\\"usage\\":{\\"prompt_tokens\\":9}","x":"usage"}', None),
        (b'{"usage":{"prompt_tokens":3,"completion_', None),
        (b'{"usage":{"prompt_tokens":true,"completion_tokens":-1}}', None),
    ],
)
def test_last_usage(tail: bytes, usage: tuple[int, int] | None) -> None:
    expected = None if usage is None else {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    assert last_usage(tail) == expected
