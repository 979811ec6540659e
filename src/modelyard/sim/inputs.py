"""What a trace is read from: a CSV, our own journal, an access log → requests in the order of their arrival.

Called by `modelyard replay` and `advise`. A file is read line by line, so what is held is bounded by `limit`.
How lines become requests is said in `sim/lines.py` and `sim/logs.py`; here is what was wrong with a file, and
everything else that the user has to be told of it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from modelyard.errors import ModelyardError
from modelyard.sim.lines import Clock, Lines, RecordedServer, Request
from modelyard.sim.logs import FORMATS, detect

LONGEST = 2**20  # bytes of one line
SAMPLE = 50  # lines that tell what a file is


class TraceError(ModelyardError):
    """A file that cannot be replayed."""


@dataclass(slots=True)
class Trace:
    """The requests of a file, the first at time 0. `notes` tell people how it was read."""

    name: str
    format: str
    requests: list[Request]
    notes: list[str] = field(default_factory=list)
    server: RecordedServer | None = None

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].at

    @property
    def models(self) -> list[str]:
        """The models that it names, the most wanted first; none when it names none."""
        counts: dict[str, int] = {}
        for request in self.requests:
            if request.model:
                counts[request.model] = counts.get(request.model, 0) + 1
        return sorted(counts, key=lambda model: (-counts[model], model))


def read(path: Path, *, format: str | None = None, limit: int = 100_000) -> Trace:
    """The first `limit` requests of a file. Raises TraceError for one that has none, or is no trace."""
    try:
        with path.open("rb") as file:
            return _Pass(path, limit).read(_lines(file), format)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error


class _Pass:
    """One pass over a file."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._found: list[Request] = []
        self._number = 0  # of the line
        self._bad = 0
        self._first_bad = ""
        self._cut = False
        self._broken = ""  # why the file could not be read to its end

    def read(self, lines: Iterator[str], format: str | None) -> Trace:
        sample: list[str] = []
        lines = self._unbroken(lines)
        for line in lines:
            sample.append(line)
            if len(sample) == SAMPLE:
                break
        if not any(line.strip() for line in sample):
            raise TraceError(
                f"{self._path} is empty{self._broken and f': {self._broken}'}: there is no request"
            )
        parser = FORMATS[format]() if format else detect(sample)
        if parser is None:
            raise TraceError(f"{self._path} is no trace: {EXPECTED}")
        parser.clock = _clock(type(parser)(), sample)
        for line in sample:
            self._take(parser, line)
        for line in lines:
            if self._cut and not parser.waiting:
                break
            self._take(parser, line)
        self._found.extend(parser.end())
        return self._trace(parser)

    def _unbroken(self, lines: Iterator[str]) -> Iterator[str]:
        try:
            yield from lines
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._broken = f"the compressed file is broken ({error})"

    def _take(self, parser: Lines, line: str) -> None:
        self._number += 1
        if not self._cut and len(self._found) + parser.waiting >= self._limit:
            self._cut = True
            parser.close()
        if (self._cut and not parser.waiting) or not line.strip():
            return
        try:
            self._found.extend(parser.take(line))
        except ValueError as error:
            self._bad += 1
            self._first_bad = self._first_bad or f"line {self._number}: {error}"

    def _trace(self, parser: Lines) -> Trace:
        found = self._found
        if not found:
            why = f"; {self._bad} of its lines are bad, the first is {self._first_bad}" if self._bad else ""
            raise TraceError(f"{self._path} has no request, read as {parser.what}{why}. {EXPECTED}")
        notes = [f"read as {parser.what}", *parser.notes()]
        trace = Trace(self._path.name, parser.format, found, notes, parser.server)
        if self._bad:
            noun = "line was" if self._bad == 1 else "lines were"
            trace.notes.append(f"{self._bad:,} bad {noun} skipped, the first is {self._first_bad}")
        if self._broken:
            trace.notes.append(f"{self._broken}: what comes after line {self._number:,} is missing")
        if self._cut:
            trace.notes.append(f"cut after {len(found):,} requests: --limit reads more")
        late = sum(1 for one, other in pairwise(found) if other.at < one.at)
        if late:
            found.sort(key=lambda request: request.at)
            trace.notes.append(f"{late:,} requests stood behind later ones: sorted by arrival")
        first = found[0].at
        for request in found:
            request.at -= first
        return trace


EXPECTED = (
    "Expected is a CSV whose header names a time and tokens (timestamp, input tokens, output tokens; a model "
    "if there is one), a server's journal (GET /admin/journal), an access log in the combined format, or "
    "JSON lines with a time and a model, path or tokens; each may be gzipped"
)


def _clock(scratch: Lines, sample: Iterable[str]) -> Clock:
    """The clock of a whole file, by the largest time of its first lines."""
    for line in sample:
        with suppress(ValueError):
            scratch.take(line)
    return Clock(scratch.clock.largest)


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a file, unpacked if it is gzipped. One that is too long is cut: it will be found bad."""
    magic = file.read(2)
    file.seek(0)
    source = gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file
    while line := source.readline(LONGEST):
        yield line.decode("utf-8", "replace").lstrip("\ufeff")
        while len(line) == LONGEST and not line.endswith(b"\n"):
            line = source.readline(LONGEST)
