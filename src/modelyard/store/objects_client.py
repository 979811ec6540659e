"""What `objects` asks of a bucket, through obstore: an object's size, version and digest, and its bytes.

Imported by `objects` in the threads of the store. obstore signs and speaks; waiting, resuming and trying
again are ours. Its calls run on an event loop in each thread, so that they can be ended from another.
"""

from __future__ import annotations

import asyncio
import configparser
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import GCSStore, S3Store

from modelyard.config.values import S3Setting
from modelyard.errors import DownloadFailed, SourceForbidden, SourceNotFound, StoreError
from modelyard.store.objects import ObjectName
from modelyard.store.pace import Pace, Patience, Throttled
from modelyard.store.source import Exact, Watch
from modelyard.store.transfer import Answer, download

if TYPE_CHECKING:
    from obstore import GetOptions

T = TypeVar("T")

TIMEOUT = 20  # seconds, for a connection and for each silence
_CHUNK = 64 * 1024
_LISTED = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
# By these obstore finds credentials itself; the shared file comes after them, a machine's role last.
_OWN_CHAIN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


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
            self._store = _s3(name.bucket, setting, environ) if name.scheme == "s3" else _gs(name.bucket)

    def resolve(self) -> Exact:
        """The object as it is now: its size, and its version or ETag. Its digest is one that was asked for,
        or that lies beside it as `sha256` in its metadata."""
        with self._watch.on_stop(self.abort):
            return Patience(self._watch, self._pace.pauses).insist(self._resolve)

    def fetch(self, source: str, folder: Path) -> Path:
        """The bytes of a resolved object."""
        pins = self._name.pins
        return download(
            self, folder, self._watch, self._pace, identity=source, size=pins.bytes, pinned=bool(pins.sha256)
        )

    def _resolve(self) -> Exact:
        with self._translated(), asyncio.Runner() as runner:
            options = self._options()
            options["head"] = True
            found = self._wait(
                runner, lambda: obstore.get_async(self._store, self._name.key, options=options)
            )
        meta, told = found.meta, found.attributes.get("sha256", "").lower()
        pins = replace(self._name.pins, size=str(meta["size"]))
        if meta["version"]:
            pins = replace(pins, version=meta["version"])
        elif meta["e_tag"]:
            pins = replace(pins, etag=meta["e_tag"])
        exact = Exact(pins.onto(self._name.text), pins.sha256 or None)
        return replace(exact, sha256=told) if not pins.sha256 and _SHA256.fullmatch(told) else exact

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
                return f"; it is a folder, which has {', '.join(inside[:3])}"
            ends = {name.rpartition("/")[2]: name for name in names}
            if close := get_close_matches(last, ends, n=3, cutoff=0.4):
                return f"; it has {', '.join(ends[one] for one in close)}"
        return "; check the bucket and the key"


_HINT = {
    "s3": "`store.s3`, AWS_ACCESS_KEY_ID, ~/.aws/credentials; `store.s3.anonymous` for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`",
}


def _client_options(address: str) -> Any:
    return {
        "allow_http": address.startswith("http://"),
        "connect_timeout": f"{TIMEOUT}s",
        "read_timeout": f"{TIMEOUT}s",
        "timeout": "1d",  # of a whole answer; the fetch has its own deadline
    }


def _s3(bucket: str, setting: S3Setting, environ: Mapping[str, str]) -> S3Store:
    named = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    address = setting.endpoint or next((environ[one] for one in named if environ.get(one)), "")
    config: dict[str, Any] = {}
    # A certificate for *.s3.amazonaws.com holds for no name with a dot in it.
    in_host = not setting.path_style and "." not in bucket and (bool(setting.endpoint) or not address)
    if setting.endpoint:
        parts = urlsplit(setting.endpoint)
        config["endpoint"] = f"{parts.scheme}://{bucket}.{parts.netloc}" if in_host else setting.endpoint
    config["virtual_hosted_style_request"] = in_host
    if setting.region or not (environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")):
        config["region"] = setting.region or _shared(environ).get("region", "us-east-1")
    if setting.anonymous:
        config["skip_signature"] = True
    elif setting.access_key_id and setting.secret_access_key is not None:
        config["access_key_id"] = setting.access_key_id
        config["secret_access_key"] = setting.secret_access_key.get_secret_value()
        if setting.session_token is not None:
            config["session_token"] = setting.session_token.get_secret_value()
    elif not any(environ.get(name) for name in _OWN_CHAIN):
        config |= {name: one for name, one in _shared(environ).items() if name != "region"}
    options = _client_options(address)
    return S3Store(bucket, config=config, client_options=options, retry_config={"max_retries": 0})  # type: ignore[arg-type]


def _gs(bucket: str) -> GCSStore:
    # A service account's file may lead elsewhere (`gcs_base_url`), as the emulators have it.
    return GCSStore(bucket, client_options=_client_options("http://"), retry_config={"max_retries": 0})


def _shared(environ: Mapping[str, str]) -> dict[str, str]:
    """What AWS's own files say for the profile: `~/.aws/credentials`, and the region of `~/.aws/config`."""
    home = Path(environ.get("HOME") or "~").expanduser() / ".aws"
    profile = environ.get("AWS_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, name, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        parser = configparser.RawConfigParser()
        with suppress(OSError, ValueError, configparser.Error):
            parser.read_string((Path(environ.get(variable) or home / name)).expanduser().read_text())
            found |= dict(parser[section]) if parser.has_section(section) else {}
    names = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region"}
    return {name.removeprefix("aws_"): value for name, value in found.items() if name in names}
