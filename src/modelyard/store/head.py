"""What a file says at its beginning while it is elsewhere: read by ranges, or from the start, and no further.

Used by `cache` for sources that are about to be registered, and by the sources, to open their files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from modelyard.errors import ChecksumMismatch, DownloadFailed
from modelyard.store.formats import Terms, check, look_at
from modelyard.store.source import Exact, Watch, licence_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from modelyard.store.transfer import Answer, Remote

# Bytes of a header that are read, and kept while it is judged: vocabularies make most of one.
MOST = 32 * 2**20
_NO_END = 1 << 62


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a file before it is here: its `size` in bytes and its `digest` (sha256 hex), 0 and
    empty where its source does not tell; the facts in its header, as far as that could be read; the licence
    that its source names, else itself."""

    size: int = 0
    digest: str = ""
    header: Mapping[str, object] = field(default_factory=dict)
    licence: str = ""


def head_of(file: BinaryIO | None, exact: Exact, terms: Terms) -> Head:
    """What a resolved source's `file` tells before all of it is here. Raises BadGguf, BadFile or
    ChecksumMismatch, which name no path, for one that must not be used, and what reading raises."""
    digest = exact.sha256 or terms.sha256
    if terms.sha256 not in {"", digest}:
        raise ChecksumMismatch(
            f"its bytes have sha256 {digest}, {terms.sha256} was promised; mend `sha256`, or name that file"
        )
    if file is None:
        return Head(digest=digest, licence=exact.licence)
    header: Mapping[str, object] = {}
    with suppress(_Beyond):  # it is judged when all of it is here
        found = look_at(file)
        check(found, terms)
        header = found.facts
    size = file.seek(0, 2)
    licence = exact.licence or licence_of(header.get("general.license"))
    return Head(size if size < _NO_END else 0, digest, header, licence)


class _Beyond(Exception):
    """More would have to be read than `MOST` bytes."""


@contextmanager
def beginning_of(remote: Remote, watch: Watch) -> Iterator[BinaryIO]:
    """The file of a server, to be read from its beginning; what was not asked for yet stays there. Reading
    raises what a `Remote` raises."""
    with watch.on_stop(remote.abort), remote.open(0, MOST, "") as answer:
        if answer.begin:
            raise DownloadFailed(f"{watch.source}: its server sent other bytes than asked for")
        yield io.BufferedReader(_Beginning(answer, watch))


class _Beginning(io.RawIOBase):
    """Bytes as they come, all kept. Its end is where the server says that it is, else far away."""

    def __init__(self, answer: Answer, watch: Watch) -> None:
        self._answer, self._watch = answer, watch
        self._size = answer.size
        self._here = bytearray()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        origin = {0: 0, 1: self._at, 2: _NO_END if self._size is None else self._size}
        self._at = origin[whence] + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while self._at >= len(self._here) and (self._size is None or len(self._here) < self._size):
            self._take()
        part = memoryview(self._here)[self._at : self._at + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _take(self) -> None:
        """One more piece of the file."""
        self._watch.check()
        if len(self._here) >= MOST:
            raise _Beyond
        chunk = next(self._answer.chunks, None)
        if chunk is not None:
            self._here += chunk
        elif self._size is None:
            self._size = len(self._here)
        else:
            raise DownloadFailed(f"{self._watch.source}: its server sent less than it said; try again")
