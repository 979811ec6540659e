"""What `objects` asks of a bucket, through obstore: an object's size, version and digest, and its bytes.

Imported by `objects` in the threads of the store. obstore signs and speaks; waiting, resuming and trying
again are ours. Its calls run on an event loop in each thread, so that they can be ended from another.
"""

from __future__ import annotations

import asyncio
import re
import threading
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError

from modelyard.config.values import S3Setting
from modelyard.errors import DownloadFailed, SourceForbidden, SourceNotFound, StoreError
from modelyard.store.addresses import Guard
from modelyard.store.buckets import gs_store, s3_bucket
from modelyard.store.folders import MOST_SEEN
from modelyard.store.http_client import HttpClient
from modelyard.store.objects import ObjectName
from modelyard.store.pace import Pace, Patience, Throttled
from modelyard.store.pins import Pins
from modelyard.store.source import Exact, Watch
from modelyard.store.transfer import Answer, download

if TYPE_CHECKING:
    from obstore import GetOptions

T = TypeVar("T")

_CHUNK = 64 * 1024
_LISTED = 1000

_SHA256 = re.compile(r"[0-9a-f]{64}")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")


class ObjectsClient:
    """One object, for one fetch. Methods raise StoreError, OSError, and what `watch` raises."""

    def __init__(
        self, name: ObjectName, setting: S3Setting, environ: Mapping[str, str], watch: Watch, pace: Pace
    ) -> None:
        self._name, self._watch, self._pace = name, watch, pace
        self._lock = threading.Lock()
        self._waits: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = set()
        self._aborted = False
        with self._translated():
            self._s3 = s3_bucket(name.bucket, setting, environ) if name.scheme == "s3" else None
            self._store = gs_store(name.bucket) if self._s3 is None else self._s3.store()

    def resolve(self) -> Exact:
        """The object as it is now: its size, and its version or ETag. Its digest is one that was asked for,
        that its server computed when it was put, or that lies in its metadata as `sha256`."""
        with self._watch.on_stop(self.abort):
            return Patience(self._watch, self._pace.pauses).insist(self._resolve)

    def fetch(self, source: str, folder: Path) -> Path:
        """The bytes of a resolved object."""
        pins = self._name.pins
        return download(
            self, folder, self._watch, self._pace, identity=source, size=pins.bytes, pinned=bool(pins.sha256)
        )

    def inside(self) -> list[tuple[str, int, str]]:
        """The objects of a folder: their keys, sizes and ETags; no more than a folder of a model has."""
        with self._watch.on_stop(self.abort):
            return Patience(self._watch, self._pace.pauses).insist(self._inside)

    def _inside(self) -> list[tuple[str, int, str]]:
        name, found = self._name, list[tuple[str, int, str]]()
        with self._translated(), asyncio.Runner() as runner:
            listed = aiter(obstore.list(self._store, prefix=name.key or None, chunk_size=_LISTED))
            with suppress(StopAsyncIteration):
                while len(found) <= MOST_SEEN:
                    batch = self._wait(runner, listed.__anext__)
                    found += [(one["path"], one["size"], one["e_tag"] or "") for one in batch]
        if not found:
            raise SourceNotFound(f"{self._watch.source}: {name.bucket} has no folder {name.key}; check both")
        return found

    def _resolve(self) -> Exact:
        with self._translated(), asyncio.Runner() as runner:
            options = self._options()
            options["head"] = True
            found = self._wait(
                runner, lambda: obstore.get_async(self._store, self._name.key, options=options)
            )
        meta = found.meta
        pins = replace(self._name.pins, size=str(meta["size"]))
        if meta["version"]:
            pins = replace(pins, version=meta["version"])
        elif meta["e_tag"]:
            pins = replace(pins, etag=meta["e_tag"])
        told = pins.sha256 or self._checksum(pins) or found.attributes.get("sha256", "").lower()
        return Exact(pins.onto(self._name.text), told if _SHA256.fullmatch(told) else None)

    def _checksum(self, pins: Pins) -> str:
        """The sha256 of the whole object that its server has; empty where it has none, or is not to be asked:
        with the credentials of a role, which obstore alone knows."""
        if self._s3 is None:
            return ""
        url, headers = self._s3.question(self._name.key, pins.version)
        if not headers:
            return ""
        anywhere = Guard(["0.0.0.0/0", "::/0"])  # the operator named it
        with (
            suppress(StoreError, ValueError),
            HttpClient(anywhere, self._watch, 1) as client,
            client.head(url, headers) as reply,
        ):
            told = reply.headers.get("x-amz-checksum-sha256", "")
            is_whole = reply.headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT"
            # Of parts it is one of their checksums, and ends with their number: `…=-3`.
            return b64decode(told, validate=True).hex() if is_whole else ""
        return ""

    # -- transfer.Remote --------------------------------------------------------------------------------

    @contextmanager
    def open(self, begin: int, end: int | None, validator: str) -> Iterator[Answer]:
        """See `transfer.Remote`. The version or ETag of the source is asked for, whatever `validator` is."""
        if self._name.pins.bytes == 0:
            yield Answer(0, 0, validator, False, iter(()))  # no range lies in it
            return
        with self._translated(), asyncio.Runner() as runner:
            options = self._options()
            if begin or end is not None:
                options["range"] = {"offset": begin} if end is None else (begin, end)
            found = self._wait(
                runner, lambda: obstore.get_async(self._store, self._name.key, options=options)
            )
            meta = found.meta
            validator = meta["version"] or meta["e_tag"] or meta["last_modified"].isoformat()
            chunks = self._chunks(runner, aiter(found.stream(_CHUNK)))
            yield Answer(found.range[0], meta["size"], validator, True, chunks)

    def abort(self) -> None:
        """See `transfer.Remote`."""
        with self._lock:
            self._aborted = True
            for loop, task in self._waits:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(task.cancel)

    def _options(self) -> GetOptions:
        pins = self._name.pins
        if pins.version:
            return {"version": pins.version}
        return {"if_match": pins.etag} if pins.etag else {}

    def _chunks(self, runner: asyncio.Runner, stream: AsyncIterator[bytes]) -> Iterator[bytes]:
        while True:
            try:
                yield self._wait(runner, stream.__anext__)
            except StopAsyncIteration:
                return

    def _wait(self, runner: asyncio.Runner, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` gives, unless `abort` ends it before."""

        async def waiting() -> T:
            task = asyncio.current_task()
            assert task is not None
            me = asyncio.get_running_loop(), task
            with self._lock:
                if self._aborted:
                    raise asyncio.CancelledError
                self._waits.add(me)
            try:
                return await ask()
            finally:
                with self._lock:
                    self._waits.discard(me)

        self._watch.check()
        try:
            return runner.run(waiting())
        except asyncio.CancelledError:
            self._watch.check()
            raise DownloadFailed(f"{self._watch.source}: the transfer was ended") from None

    # -- what went wrong --------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and error.filename is not None:
                raise  # a file of ours
            self._watch.check()
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> StoreError:
        # obstore says everything twice, the second time for those who debug it.
        said = str(error).partition("\n\nDebug source:")[0]
        status, code = _STATUS.search(said), _CODE.search(said)
        number = int(status[1]) if status else 0
        why = code[1] if code else f"status {number}" if number else said.splitlines()[0][:300]
        name = self._name
        if isinstance(error, FileNotFoundError):
            return SourceNotFound(
                f"{self._watch.source}: {name.bucket} has no object {name.key}{self._near()}"
            )
        if isinstance(error, PreconditionError):
            return SourceNotFound(
                f"{self._watch.source}: the object has changed since it was first fetched, and its bucket "
                "keeps no versions; name the new one by its #sha256="
            )
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or number in {401, 403}:
            return SourceForbidden(
                f"{self._watch.source}: the bucket refuses it ({why}); check the credentials "
                f"({_HINT[name.scheme]})"
            )
        if number in {429, 503}:
            return Throttled(
                f"{self._watch.source}: the bucket limits how often it is asked ({why}); try again"
            )
        if isinstance(error, ValueError) or 400 <= number < 500:
            return SourceNotFound(
                f"{self._watch.source}: cannot be asked for ({why}); check it and `store.s3`"
            )
        return DownloadFailed(f"{self._watch.source}: the bucket cannot be reached ({why}); try again")

    def _near(self) -> str:
        """Objects with similar names, for a message; empty when they cannot be had."""
        parent, _, last = self._name.key.rpartition("/")
        with (
            suppress(BaseError, OSError, ValueError, StoreError, StopAsyncIteration),
            asyncio.Runner() as runner,
        ):

            async def first() -> list[str]:
                listed = obstore.list(self._store, prefix=parent or None, chunk_size=_LISTED)
                return [one["path"] for one in await anext(listed)]

            names = self._wait(runner, first)
            inside = [name for name in names if name.startswith(f"{self._name.key}/")]
            if inside:
                return f"; it is a folder, which has {', '.join(inside[:3])}: name one, or end it with /"
            ends = {name.rpartition("/")[2]: name for name in names}
            if close := get_close_matches(last, ends, n=3, cutoff=0.4):
                return f"; it has {', '.join(ends[one] for one in close)}"
        return "; check the bucket and the key"


_HINT = {
    "s3": "`store.s3`, AWS_ACCESS_KEY_ID, ~/.aws/credentials; `store.s3.anonymous` for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`",
}
