"""Events as engines may write them, torn anywhere: what they say is the same.

The cases are those of the specification (WHATWG HTML, "Interpreting an event stream") and of what OpenAI's
client tests its own reader with (openai-python, tests/test_streaming.py), with texts of our own.
"""

from __future__ import annotations

import json

import pytest

from modelyard.gateway.chunks import payloads
from modelyard.wire.sse import Framer

CASES: dict[str, tuple[bytes, list[object]]] = {
    "one line": (b'data: {"n":1}\n\n', [{"n": 1}]),
    "no blank behind the colon": (b'data:{"n":1}\n\n', [{"n": 1}]),
    "a name before": (b'event: delta\ndata: {"n":1}\n\n', [{"n": 1}]),
    "a name behind": (b'data: {"n":1}\nevent: delta\n\n', [{"n": 1}]),
    "an id and a time": (b'id: 7\nretry: 10\ndata: {"n":1}\n\n', [{"n": 1}]),
    "a field that nobody knows": (b'colour: red\nodd\ndata: {"n":1}\n\n', [{"n": 1}]),
    "a name alone": (b'event: ping\n\ndata: {"n":1}\n\n', [{"n": 1}]),
    "a comment between lines": (b'data: {"n":\n: still here\ndata: 1}\n\n', [{"n": 1}]),
    "several lines": (b'data: {\ndata: "n":\ndata: 1}\n\n', [{"n": 1}]),
    "lines without text": (b'data: {\ndata:\ndata: \ndata: "n": 1}\n\n', [{"n": 1}]),
    "many empty lines": (b'\n\ndata: {"n":1}\n\n\n\ndata: {"n":2}\n\n', [{"n": 1}, {"n": 2}]),
    "escaped line ends": (b'data: {"s":"one\\n\\ntwo\\r"}\n\n', [{"s": "one\n\ntwo\r"}]),
    "line ends of Unicode": (
        'data: {"s":"\u2028 \u2029 \x85 \x0b \x0c"}\n\n'.replace("\x0b", "\\u000b")
        .replace("\x0c", "\\f")
        .encode(),
        [{"s": "\u2028 \u2029 \x85 \x0b \x0c"}],
    ),
    "letters of several bytes": ('data: {"s":"вода, 水, 💧"}\n\n'.encode(), [{"s": "вода, 水, 💧"}]),
    "a text like an event": (b'data: {"s":"data: {}"}\n\n', [{"s": "data: {}"}]),
}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CR LF", "CR"])
@pytest.mark.parametrize("case", CASES)
def test_events_say_the_same_wherever_they_are_torn(case: str, end: bytes) -> None:
    text, said = CASES[case]
    text = text.replace(b"\n", end)
    for at in range(len(text) + 1):
        framer = Framer()
        pieces = [framer.feed(text[:at]), framer.feed(text[at:])]
        found = [json.loads(payload) for piece in pieces for payload in payloads(piece)]
        assert found == said, f"torn at {at}"
        assert framer.pending == 0
    framer = Framer()
    single = [framer.feed(text[at : at + 1]) for at in range(len(text))]
    assert [json.loads(payload) for piece in single for payload in payloads(piece)] == said
