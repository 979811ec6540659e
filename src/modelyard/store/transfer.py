"""One download: ranges over several connections, into a file that survives a restart.

Called by sources in a thread of the store, with a `Remote` that speaks their protocol. Each connection has a
thread, joined before `download` returns. What is on the disk is written down once a second, after a sync; a
further try asks for the rest alone, if the server says that it is still the same file.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from modelyard.errors import DownloadFailed, SourceNotFound
from modelyard.store.pace import Pace, Patience, Throttled
from modelyard.store.partial import State, gaps, merged
from modelyard.store.source import HEADROOM, Watch

# The least that is asked for at once. A small file comes over one connection.
PIECE = 32 * 2**20
# The most: there are servers that give no more than 50 GB in one answer.
LARGEST_PIECE = 16 * 2**30
_PIECES_EACH = 16
_SAVE_EVERY = 1.0
_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes of a file from `begin` on, as far as the server chose to send them. `size` is that of the whole
    file, None while it is unknown; `validator` is the same for the same bytes only, "" where the server has
    none; `partial`: a range was sent because one was asked for."""

    begin: int
    size: int | None
    validator: str
    partial: bool
    chunks: Iterator[bytes]


class Remote(Protocol):
    """A file on a server, for one download. Methods are called from several threads."""

    def open(self, begin: int, end: int | None, validator: str) -> AbstractContextManager[Answer]:
        """Ask for the bytes from `begin` to before `end` (None: all), if the file is still the one of this
        validator. Raises DownloadFailed for what may pass by itself, other StoreErrors for what does not; so
        do the chunks."""
        ...

    def abort(self) -> None:
        """End all waits for the server, from another thread; what waited raises DownloadFailed."""
        ...


def download(
    remote: Remote,
    folder: Path,
    watch: Watch,
    pace: Pace,
    *,
    identity: str,
    size: int | None = None,
    pinned: bool = False,
) -> Path:
    """Fetch into `folder`, going on from what an earlier try of the same `identity` left there.

    `size` is what it must have, where that is known. `pinned`: the identity itself says which bytes these
    are, so that parts belong together even where the server has no validator. Raises StoreError, OSError and
    what `watch` raises."""
    whole = False
    for _ in range(_RESTARTS):
        attempt = _Download(remote, folder, watch, pace, State(identity), size, pinned, whole)
        try:
            with watch.on_stop(remote.abort):
                return attempt.run()
        except _Changed as changed:
            whole = changed.whole
            attempt.drop()
        finally:
            attempt.close()
    raise DownloadFailed(
        f"{watch.source}: the file changes while it is fetched; try again when it is complete"
    )


class _Changed(Exception):
    """What is here is not part of what the server has. `whole`: nor can parts of it be put together."""

    def __init__(self, *, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole


@dataclass(slots=True)
class _Piece:
    """A range that one thread fetches; `at` is how far it is. `end` None: to wherever the file ends."""

    begin: int
    end: int | None
    at: int


class _Download:
    """One try, without a restart from the beginning."""

    def __init__(
        self,
        remote: Remote,
        folder: Path,
        watch: Watch,
        pace: Pace,
        fresh: State,
        size: int | None,
        pinned: bool,
        whole: bool,
    ) -> None:
        self._remote, self._folder, self._watch, self._pace = remote, folder, watch, pace
        self._wanted, self._pinned, self._whole = size, pinned, whole
        self._data = folder / "data"
        self._state = fresh if whole else State.read(folder, self._data, fresh.identity)
        self._file = os.open(self._data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._threads: ThreadPoolExecutor
        self._lock = threading.RLock()
        self._saving = threading.Lock()
        self._saved_at = time.monotonic()
        self._done = list(self._state.done)
        self._active: list[_Piece] = []
        self._pending: deque[tuple[int, int | None]] = deque()
        self._met = False  # the server has told in this try which file it has
        self._parts = True  # it sends parts, and these belong together
        self._failure: BaseException | None = None
        if not self._done:
            os.ftruncate(self._file, 0)

    def close(self) -> None:
        os.close(self._file)

    def run(self) -> Path:
        size = self._state.size
        missing = next(gaps(self._done, size), None) if size is not None and self._done else (0, None)
        if missing is not None:
            begin, end = missing
            first = min(begin + PIECE, end or begin + PIECE)
            self._pending.append((begin, None if self._whole else first))
            others = max(1, self._pace.connections - 1)
            with ThreadPoolExecutor(others, thread_name_prefix="transfer") as self._threads:
                self._work()
            if self._failure is not None:
                raise self._failure
            os.ftruncate(self._file, self._state.size or 0)
            self._save()
        return self._data

    # -- threads ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Fetch pieces until there are none; keeps what goes wrong for all threads."""
        patience = Patience(self._watch, self._pace.pauses)
        try:
            while (piece := self._next()) is not None:
                try:
                    self._fetch(piece, patience)
                except DownloadFailed as failure:
                    self._watch.check()
                    if self._failure is not None or self._leave_to_others(piece, failure):
                        return
                    patience.bear(failure)
                finally:
                    self._put_back(piece)
        except BaseException as failure:  # to be raised by `run`, once all threads have ended
            with self._lock:
                over, self._failure = self._failure, self._failure or failure
            if over is None and not isinstance(failure, _Changed):
                with suppress(OSError):
                    self._save()
                self._remote.abort()

    def _next(self) -> _Piece | None:
        with self._lock:
            if not self._pending or self._failure is not None:
                return None
            begin, end = self._pending.popleft()
            piece = _Piece(begin, end, begin)
            self._active.append(piece)
            return piece

    def _put_back(self, piece: _Piece) -> None:
        """What a piece lacks is to be fetched again; by whom is open."""
        with self._lock:
            if piece not in self._active:
                return
            self._active.remove(piece)
            if not self._parts:
                if piece.end != piece.at:
                    self._pending.append((0, None))
                    return
            elif piece.end is None or piece.at < piece.end:
                self._pending.appendleft((piece.at, piece.end))
            self._done = merged([*self._done, (piece.begin, piece.at)])

    def _leave_to_others(self, piece: _Piece, failure: DownloadFailed) -> bool:
        """Whether this thread ends, because the server has too many of us and others are at work."""
        if not isinstance(failure, Throttled):
            return False
        with self._lock:
            if len(self._active) == 1:
                return False
            self._put_back(piece)
            return True

    # -- one piece --------------------------------------------------------------------------------------

    def _fetch(self, piece: _Piece, patience: Patience) -> None:
        begin = piece.at
        with self._remote.open(begin, piece.end, self._state.validator) as answer:
            self._meet(answer, piece)
            for chunk in answer.chunks:
                self._pace.bandwidth.take(len(chunk), self._watch)
                self._write(piece, chunk)
                with self._lock:
                    if self._failure is not None:
                        return
                    piece.at += len(chunk)
                    done = self._total()
                    self._watch.progress(done, self._state.size)
                patience.reached(done)
                self._save_if_due()
        if self._state.size is None:
            with self._lock:
                self._state = replace(self._state, size=piece.at)
                piece.end = piece.at
        elif piece.at != piece.end and (piece.at == begin or not self._parts):
            raise DownloadFailed(f"{self._watch.source}: its server sent less than it said; try again")

    def _write(self, piece: _Piece, chunk: bytes) -> None:
        if piece.end is not None and piece.at + len(chunk) > piece.end:
            raise DownloadFailed(f"{self._watch.source}: its server sent more than it said; try again")
        view, at = memoryview(chunk), piece.at
        while view:
            written = os.pwrite(self._file, view, at)
            view, at = view[written:], at + written

    def _meet(self, answer: Answer, piece: _Piece) -> None:
        """Hold an answer against what is known of the file; the first one says what there is to fetch."""
        with self._lock:
            if self._wanted is not None and answer.size not in {None, self._wanted}:
                raise SourceNotFound(
                    f"{self._watch.source}: has {answer.size} bytes now, and had {self._wanted} when it was "
                    "first fetched; name the new file by its #sha256="
                )
            known = self._state
            same = (answer.size, answer.validator) == (known.size, known.validator)
            if not self._met:
                self._begin(answer, piece, same)
            elif self._parts and not same:
                raise _Changed
            elif self._parts and answer.begin != piece.at:
                raise DownloadFailed(f"{self._watch.source}: its server sent other bytes than asked for")
            elif not self._parts and answer.begin == 0:
                self._state = replace(known, size=answer.size, validator=answer.validator)
                piece.at, piece.end = 0, answer.size

    def _begin(self, answer: Answer, piece: _Piece, same: bool) -> None:
        """Plan the download by its first answer. The lock is held."""
        trusted = self._pinned or bool(answer.validator)
        size = answer.size
        if self._done and not (same and trusted):
            if answer.begin:
                raise _Changed
            self.drop()
            self._done = []
        if answer.begin != (piece.at if answer.partial else 0):
            raise DownloadFailed(f"{self._watch.source}: its server sent other bytes than asked for")
        if answer.partial and not trusted and (size is None or size > (piece.end or 0)):
            raise _Changed(whole=True)
        self._state = State(self._state.identity, size, answer.validator)
        self._parts = answer.partial and trusted and size is not None
        if self._parts and size is not None:
            piece.end = min(piece.end or size, size)
            self._plan(piece, piece.end, size)
        else:
            self._done = []
            piece.at, piece.begin, piece.end = 0, 0, size
        missing = (size or 0) - sum(end - begin for begin, end in self._done)
        self._watch.room(self._folder, missing + HEADROOM)
        self._met = True
        for _ in range(min(self._pace.connections - 1, len(self._pending))):
            self._threads.submit(self._work)

    def _plan(self, piece: _Piece, end: int, size: int) -> None:
        """Cut what is missing besides a piece that ends there."""
        missing = list(gaps([*self._done, (piece.begin, end)], size))
        left = sum(end - begin for begin, end in missing)
        step = min(max(PIECE, left // (_PIECES_EACH * self._pace.connections)), LARGEST_PIECE)
        for begin, stop in missing:
            self._pending.extend((at, min(at + step, stop)) for at in range(begin, stop, step))

    # -- what is on the disk ----------------------------------------------------------------------------

    def _total(self) -> int:
        """Bytes that are here. The lock is held."""
        return sum(end - begin for begin, end in self._done) + sum(one.at - one.begin for one in self._active)

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved_at >= _SAVE_EVERY and not self._saving.locked():
            self._save()

    def _save(self) -> None:
        """Write down what has come, once it is on the disk: in this order."""
        with self._saving:
            with self._lock:
                here = merged([*self._done, *((one.begin, one.at) for one in self._active)])
                state = replace(self._state, done=tuple(here))
            if here and (self._parts or here == [(0, state.size)]):
                os.fdatasync(self._file)
                state.write(self._folder)
            elif state.size is None:
                self._watch.room(self._folder, HEADROOM)
                if self._watch.expects is not None:
                    self._watch.expects(self._total())
            self._saved_at = time.monotonic()

    def drop(self) -> None:
        """Forget what an earlier try left."""
        (self._folder / "state").unlink(missing_ok=True)
        os.ftruncate(self._file, 0)
