"""Server-sent events as bytes: where one ends, and the token counts in the last of them.

Used by the relay, which may add its own events between those of an engine and must never split one. Works
on framing alone: no event is decoded, except the last few, once, for their `usage`.
"""

from __future__ import annotations

import re
from collections import deque

import orjson

from modelyard.wire.errors import ProtocolError

__all__ = ["TAIL", "Framer", "last_usage"]

TAIL = 4096  # bytes

# A line ends with LF, CR LF or CR, in any mixture; an event ends with an empty line.
_BOUNDARY = re.compile(rb"(?:\r\n|\n|\r(?!\n))[\r\n]+")
_BLANK = re.compile(rb"[\r\n]+")
_DATA = re.compile(rb"(?:^|[\r\n])data[:\r\n]")
# An object of counts, and of details that are objects of counts.
_USAGE = re.compile(rb'"usage"[ \t\r\n]*+:[ \t\r\n]*+(\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\})')

# OpenAI's names, and those of Anthropic's and OpenAI's newer APIs for the same counts.
_COUNTS = (
    ("prompt_tokens", "prompt_tokens"),
    ("completion_tokens", "completion_tokens"),
    ("input_tokens", "prompt_tokens"),
    ("output_tokens", "completion_tokens"),
)


class Framer:
    """Cuts a stream into whole events.

    `events_seen` turns True once an event with data has passed; comments (heartbeats) do not count. `limit`
    bounds in bytes how much of an unfinished event is kept.
    """

    __slots__ = ("_keep", "_pending", "_recent", "events_seen", "limit")

    def __init__(self, limit: int = 1 << 20) -> None:
        self.limit = limit
        self.events_seen = False
        self._pending = bytearray()
        # References to what was passed on last: the final events often come one read each.
        self._recent: deque[bytes] = deque(maxlen=4)
        self._keep = self._recent.append

    def feed(self, data: bytes) -> bytes:
        """The longest prefix of what is unfinished plus `data` that ends with an event; b"" when none does.

        Raises ProtocolError when an unfinished event grows past `limit`.
        """
        if not self._pending and data.endswith((b"\n\n", b"\r\n\r\n")):
            whole = data
        else:
            whole = self._cut(data)
            if not whole:
                return whole
        self._keep(whole)
        if not self.events_seen:
            self.events_seen = _DATA.search(whole) is not None
        return whole

    def _cut(self, data: bytes) -> bytes:
        pending = self._pending
        # Up to three bytes before the seam may belong to a boundary that ends behind it.
        start = max(0, len(pending) - 3)
        end = 0
        if not pending and (blank := _BLANK.match(data)):
            end = blank.end()  # empty lines between events, such as the LF of a CR LF that was torn apart
        pending += data
        end = max(end, _last_boundary(pending, start))
        if len(pending) - end > self.limit:
            raise ProtocolError(f"an event of the stream is longer than {self.limit} bytes; it was cut off")
        whole = bytes(pending[:end])
        del pending[:end]
        return whole

    @property
    def pending(self) -> int:
        """The number of bytes kept of an unfinished event: not 0 at the end of a stream means it was cut."""
        return len(self._pending)

    @property
    def tail(self) -> bytes:
        """The last events that were passed on, at most 4 KiB, the first of them perhaps without its start."""
        return b"".join(self._recent)[-TAIL:]


def _last_boundary(text: bytearray, start: int) -> int:
    """Where the last event in `text` ends, looking from `start`; 0 when none does."""
    if text.find(b"\r", start) < 0:
        return text.rfind(b"\n\n", start) + 2 if text.find(b"\n\n", start) >= 0 else 0
    end = 0
    for match in _BOUNDARY.finditer(text, start):
        end = match.end()
    return end


def last_usage(tail: bytes) -> dict[str, int] | None:
    """The token counts of the last `usage` object in the end of an answer, SSE or one JSON body.

    Keys are `prompt_tokens` and `completion_tokens`, as far as they are there. None when there is no such
    object or it is not whole. A key inside a JSON string never matches: its quotes are escaped there.
    """
    at = len(tail)
    while (at := tail.rfind(b'"usage"', 0, at)) >= 0:
        match = _USAGE.match(tail, at)
        if match is None:
            continue
        try:
            usage = orjson.loads(match[1])
        except ValueError:
            continue
        counts = {name: value for key, name in _COUNTS if type(value := usage.get(key)) is int and value >= 0}
        if counts:
            return counts
    return None
