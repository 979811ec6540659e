"""What `hub` asks of the Hugging Face Hub: a file's commit and digest, its bytes, and the user's own cache.

Imported by `hub` in the threads of the store, never at start-up. Metadata, errors, cache and the HTTP session
(with the user's proxies and certificates) are huggingface_hub's; the transfer is ours, so that it can be
stopped, resumed, and bounded in its waits. Signed addresses and tokens never get into a message.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import (
    HfApi,
    ModelInfo,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, parse_ratelimit_headers

from modelyard.errors import (
    DownloadFailed,
    SourceForbidden,
    SourceNotFound,
    SourceOffline,
    StoreError,
)
from modelyard.store.folders import Member, listed, sizes, to_list
from modelyard.store.head import beginning_of
from modelyard.store.http_client import answer_of
from modelyard.store.hub import HubFile, HubSettings
from modelyard.store.licences import Licences
from modelyard.store.pace import Pace, Patience, Throttled, retry_after
from modelyard.store.source import LICENCE_WAIT, Exact, Watch, licence_of, shown
from modelyard.store.transfer import Answer, download

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRINTABLE = re.compile(r"[!-~]+")
_NAME, _VERSION = "modelyard", version("modelyard")

# Its user agent would tell more than who asks, and look up names for it on the network.
constants.HF_HUB_DISABLE_TELEMETRY = True


class HubClient:
    """The hub for one fetch. All methods raise StoreError, OSError, and what `watch` raises."""

    def __init__(self, settings: HubSettings, watch: Watch, pace: Pace, licences: Licences) -> None:
        self._settings = settings
        self._watch = watch
        self._pace = pace
        self._licences = licences
        self._lock = threading.Lock()
        self._open: set[httpx2.Response] = set()
        if settings.token is not None and not _PRINTABLE.fullmatch(settings.token):
            raise SourceForbidden(f"{watch.source}: HF_TOKEN has characters that no token has; set it anew")
        self._shown = shown(settings.endpoint)

    def resolve(self, file: HubFile) -> Exact:
        """The file at its commit, with the digest that the hub tells of a large file."""
        if file.is_folder:
            return Exact(str(file if file.is_settled else file.at(self._commit(file))))
        known = self._cached(file)
        if known is not None and (file.is_settled or self._settings.offline):
            return _as_cached(file, known)
        patience = Patience(self._watch, () if known else self._pace.pauses)
        try:
            exact = patience.insist(lambda: self._metadata(file))
        except DownloadFailed:
            # The hub cannot be asked: what the user's cache has for this revision is the best that is known.
            if known is None:
                raise
            return _as_cached(file, known)
        at = HubFile.parse(exact.source)
        place = (self._settings.endpoint, at.repo, at.revision)
        return replace(exact, licence=self._licences.of(place, lambda: self._licence(at)))

    def head(self, file: HubFile) -> AbstractContextManager[BinaryIO]:
        """The file of a resolved source, to be read from its beginning."""
        if file.is_folder:
            return BytesIO(self._list(file))
        if known := self._cached(file):
            return known.open("rb")
        return beginning_of(_Remote(self, file), self._watch)

    def fetch(self, file: HubFile, folder: Path) -> Path:
        """The file of a resolved source: where it lies in the user's cache, else fetched into `folder`."""
        if file.is_folder:
            path = folder / "list"
            path.write_bytes(self._list(file))
            return path
        if known := self._cached(file):
            return known
        return download(
            _Remote(self, file), folder, self._watch, self._pace, identity=str(file), pinned=file.is_settled
        )

    # -- asking -----------------------------------------------------------------------------------------

    @contextmanager
    def _asking(self, file: HubFile) -> Iterator[None]:
        """Turns what huggingface_hub raises into our errors."""
        if self._settings.offline:
            raise self._offline(file)
        self._watch.check()
        try:
            yield
        except OfflineModeIsEnabled:
            raise self._offline(file) from None
        except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            self._watch.check()
            raise self._failure(file, error) from None

    def _metadata(self, file: HubFile) -> Exact:
        with self._asking(file):
            found = get_hf_file_metadata(
                self._url(file),
                token=self._token,
                endpoint=self._settings.endpoint,
                library_name=_NAME,
                library_version=_VERSION,
            )
        commit = file.at(found.commit_hash or "")
        if not commit.is_settled:
            raise SourceNotFound(
                f"{file}: {self._shown} does not answer as a hub does (no X-Repo-Commit); check HF_ENDPOINT, "
                "and what stands between"
            )
        is_digest = found.etag is not None and _SHA256.fullmatch(found.etag)
        return Exact(str(commit), found.etag if is_digest else None)

    @contextmanager
    def open(self, file: HubFile, begin: int, end: int | None, validator: str) -> Iterator[Answer]:
        """Bytes of a file, as a `transfer.Remote` gives them."""
        headers = build_hf_headers(token=self._token, library_name=_NAME, library_version=_VERSION)
        headers |= {"Accept-Encoding": "identity"}
        if begin or end is not None:
            headers["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
            headers |= {"If-Range": validator} if validator else {}
        limit = constants.HF_HUB_DOWNLOAD_TIMEOUT
        # The session takes the token off when it is led to another host.
        with (
            self._asking(file),
            get_session().stream("GET", self._url(file), headers=headers, timeout=limit) as response,
        ):
            status = response.status_code
            if response.is_error and status != 416:
                response.close()  # its text is of no use, and has no bound
                hf_raise_for_status(response)
            with self._kept(response):
                yield answer_of(self._watch.source, status, response.headers, begin, response.iter_raw())

    @contextmanager
    def _kept(self, response: httpx2.Response) -> Iterator[None]:
        with self._lock:
            self._open.add(response)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(response)

    def abort(self) -> None:
        """End all answers that are being read."""
        with self._lock:
            for response in self._open:
                _shut_down(response)

    def _url(self, file: HubFile) -> str:
        return hf_hub_url(file.repo, file.path, revision=file.revision, endpoint=self._settings.endpoint)

    @property
    def _token(self) -> str | bool:
        # False: none, and none is looked for.
        return self._settings.token or False

    # -- folders ----------------------------------------------------------------------------------------

    def _commit(self, file: HubFile) -> str:
        """The commit of a revision: by the hub, offline by the user's cache."""
        if known := self._snapshot(file):
            return known.name
        return self._asked(file).sha or ""

    def _list(self, file: HubFile) -> bytes:
        """The list (see `folders`) of a folder at its commit; offline, of what the user's cache has of it."""
        if known := self._snapshot(file):
            found = sizes(known)
        else:
            found = [(one.rfilename, one.size or 0) for one in self._asked(file).siblings or ()]
        inside = [(name, size) for name, size in found if name.startswith(file.path)]
        if not inside:
            raise SourceNotFound(f"{file}: {file.repo} has no folder {file.path}; check it")
        members = [
            Member(name.removeprefix(file.path), size, str(replace(file, path=name))) for name, size in inside
        ]
        return to_list(listed(members, self._watch.source))

    def _asked(self, file: HubFile) -> ModelInfo:
        return Patience(self._watch, self._pace.pauses).insist(lambda: self._info(file))

    def _info(self, file: HubFile) -> ModelInfo:
        with self._asking(file):
            limit = constants.HF_HUB_ETAG_TIMEOUT
            return self._api().model_info(
                file.repo, revision=file.revision, files_metadata=True, timeout=limit
            )

    def _snapshot(self, file: HubFile) -> Path | None:
        """Where the user's cache has files of this revision; None unless offline: they may be some of many,
        and a list of those would be taken for the whole."""
        if not self._settings.offline:
            return None
        repo, commit = self._settings.cache / f"models--{file.repo.replace('/', '--')}", file.revision
        if not file.is_settled:
            try:
                commit = (repo / "refs" / file.revision).read_text().strip()
            except (OSError, ValueError):
                return None
        found = repo / "snapshots" / commit
        return found if file.at(commit).is_settled and found.is_dir() else None

    # -- the user's own cache ---------------------------------------------------------------------------

    def _cached(self, file: HubFile) -> Path | None:
        path = try_to_load_from_cache(
            file.repo, file.path, cache_dir=self._settings.cache, revision=file.revision
        )
        return Path(path) if isinstance(path, str) else None

    def _offline(self, file: HubFile) -> SourceOffline:
        return SourceOffline(
            f"{file}: is not in {self._settings.cache}, and HF_HUB_OFFLINE forbids to fetch it; unset that, "
            "or put the file on this machine and name its path"
        )

    # -- what went wrong --------------------------------------------------------------------------------

    def _failure(self, file: HubFile, error: Exception) -> StoreError:
        if not isinstance(error, HfHubHTTPError):
            cause = shown(str(error)) or type(error).__name__
            return DownloadFailed(
                f"{file}: the connection to {self._shown} failed ({cause}); check it and try again"
            )
        status, page = error.response.status_code, f"{self._shown}/{file.repo}"
        match error:
            case GatedRepoError():
                return SourceForbidden(
                    f"{file}: the repository is gated; accept its licence at {page} and set HF_TOKEN to a "
                    f"token of the account that did ({self._token_is})"
                )
            case RevisionNotFoundError():
                return SourceNotFound(
                    f"{file}: {file.repo} has no revision {file.revision}; name one that {page} has"
                )
            case RemoteEntryNotFoundError():
                return SourceNotFound(f"{file}: {file.repo} has no file {file.path}{self._near(file)}")
            case DisabledRepoError():
                return SourceForbidden(f"{file}: the repository was disabled by {self._shown}; use another")
            case RepositoryNotFoundError():
                return SourceNotFound(
                    f"{file}: {self._shown} has no repository {file.repo}, or it is private; check its name, "
                    f"and set HF_TOKEN for a private one ({self._token_is})"
                )
        if status in {401, 403}:
            return SourceForbidden(
                f"{file}: {self._shown} refuses it with status {status}; set HF_TOKEN to a token that may "
                f"read {page} ({self._token_is})"
            )
        if status == 404:
            return SourceNotFound(f"{file}: {self._shown} has no such file; check the source and HF_ENDPOINT")
        if status == 429:
            return self._too_many(file, error.response)
        return DownloadFailed(f"{file}: {self._shown} answered with status {status}; try again later")

    def _too_many(self, file: HubFile, response: httpx2.Response) -> DownloadFailed:
        after, window = retry_after(response.headers), parse_ratelimit_headers(response.headers)
        if after is None and window:
            after = float(window.reset_in_seconds)
        when = "later" if after is None else f"in {after:.0f} s"
        return Throttled(
            f"{file}: {self._shown} limits how often it is asked (429); try again {when}, or set HF_TOKEN "
            f"for a limit of your own ({self._token_is})",
            retry_after=after,
        )

    @property
    def _token_is(self) -> str:
        return "one is set" if self._settings.token else "none is set"

    def _licence(self, file: HubFile) -> str | None:
        """What the repository's card says, "" where that is nothing; None where it cannot be had soon."""
        with _if_told():
            found = self._api().model_info(
                file.repo, revision=file.revision, expand=["cardData"], timeout=LICENCE_WAIT
            )
            card = found.card_data
            told = card and card.get("license")
            if card and told == "other":
                told = card.get("license_name") or told
            return licence_of(", ".join(told) if isinstance(told, list) else told)
        self._watch.check()
        return None

    def _api(self) -> HfApi:
        return HfApi(self._settings.endpoint, self._token, library_name=_NAME, library_version=_VERSION)

    def _near(self, file: HubFile) -> str:
        """The repository's files with similar names, for a message; empty when they cannot be had."""
        with _if_told():
            limit = constants.HF_HUB_ETAG_TIMEOUT
            found = self._api().model_info(file.repo, revision=file.revision, timeout=limit).siblings or ()
            names = [sibling.rfilename for sibling in found]
            if any(name.startswith(f"{file.path}/") for name in names):
                return f"; it is a folder: write {file.path}/"
            if close := get_close_matches(file.path, names, n=3, cutoff=0.4):
                return f"; it has {', '.join(close)}"
        return f"; {self._shown}/{file.repo}/tree/{file.revision} lists its files"


class _Remote:
    """A `transfer.Remote`: one file of the hub."""

    def __init__(self, client: HubClient, file: HubFile) -> None:
        self._client, self._file = client, file

    def open(self, begin: int, end: int | None, validator: str) -> AbstractContextManager[Answer]:
        return self._client.open(self._file, begin, end, validator)

    def abort(self) -> None:
        self._client.abort()


def _as_cached(file: HubFile, path: Path) -> Exact:
    """A file of the user's cache: `snapshots/COMMIT/PATH`, a link to a blob that is named by its etag."""
    commit = path.parents[file.path.count("/")].name
    blob = path.readlink().name if path.is_symlink() else ""
    return Exact(str(file.at(commit)), blob if _SHA256.fullmatch(blob) else None)


def _if_told() -> AbstractContextManager[None]:
    """Leaves its block where the hub does not tell what would be nice to know."""
    network = (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled)
    return suppress(*network, ValueError, TypeError, KeyError, AttributeError)


def _shut_down(response: httpx2.Response) -> None:
    """End the connection under a read that is waiting in another thread."""
    with suppress(KeyError, AttributeError, OSError):
        connection = response.extensions["network_stream"].get_extra_info("socket")
        # Not SSLSocket's own: it would take the TLS state away from under the reader.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
