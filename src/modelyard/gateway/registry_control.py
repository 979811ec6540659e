"""What the routes of models and tasks share: who asks, for which revision, and how failures are told.

Made by `gateway/app.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Request, Response

from modelyard.errors import (
    ConfigRefused,
    DiskFull,
    DownloadFailed,
    InvalidRequest,
    ModelyardError,
    NameTaken,
    OwnedByFile,
    RegistryUnavailable,
    RestartNeeded,
    RevisionMismatch,
    ShuttingDown,
    SourceOffline,
    SourceUnreachable,
    SpecRefused,
    StoreError,
    UnsupportedMediaType,
)
from modelyard.gateway.catalog import Catalog, Known
from modelyard.gateway.exchange import Caller
from modelyard.gateway.http.asgi import CALLER
from modelyard.gateway.names import Names
from modelyard.gateway.snapshot import Snapshot
from modelyard.runtime.driver import Driver
from modelyard.runtime.tasks import Tasks

ANYBODY = "anybody"
_TAG = re.compile(r'(W/)?"([^"]*)"')

Match = Annotated[
    str | None,
    Header(
        alias="If-Match", max_length=1000, description="The `ETag` that was seen; another one by now: 412."
    ),
]
CHANGING: tuple[type[ModelyardError], ...] = (
    *(SpecRefused, OwnedByFile, RevisionMismatch, RegistryUnavailable),
    *(RestartNeeded, ShuttingDown, UnsupportedMediaType),
)
"""What any change of a model may be refused with."""
READING_FILES: tuple[type[ModelyardError], ...] = (NameTaken, SourceUnreachable, DiskFull)
"""What one may be refused with that looks at a model's files as well."""


@dataclass(frozen=True, slots=True)
class Control:
    catalog: Catalog
    tasks: Tasks
    driver: Driver
    names: Names
    snapshot: Snapshot

    def own(self, name: str, *, change: bool = True) -> Known:
        """A registered model, also by the name of one of its versions. Raises ModelNotFound, OwnedByFile; for
        a `change` InvalidRequest when the name means a version, and RegistryUnavailable."""
        if change:
            self.check()
        known = self.catalog.get(name)
        if known.record is None:
            raise OwnedByFile.at(known.name, known.place)
        if change and name != known.name and name not in known.aliases:
            raise InvalidRequest(f"{name} means a version of {known.name}; name the model.", param="name")
        return known

    def check(self) -> None:
        """Raises RegistryUnavailable while nothing can be changed."""
        if problem := self.catalog.problem:
            raise RegistryUnavailable(problem)

    def who(self, request: Request) -> str:
        """Whose request it is, for the audit log."""
        return caller_of(request).name or ANYBODY


def caller_of(request: Request) -> Caller:
    """Who was admitted with it."""
    caller: Caller = request.scope[CALLER]
    return caller


def match_of(sent: str | None, known: Known) -> int | None:
    """The revision that a change of a model is made for; None for any. Raises RevisionMismatch,
    InvalidRequest."""
    record = known.record
    assert record is not None
    return revision_of(sent, known.name, record.revision)


def revision_of(sent: str | None, name: str, revision: int) -> int | None:
    """`revision`, when If-Match names it; None where it names any. Raises RevisionMismatch,
    InvalidRequest."""
    if sent is None or sent.strip() == "*":
        return None
    if not re.fullmatch(rf"\s*{_TAG.pattern}(\s*,\s*{_TAG.pattern})*\s*", sent):
        raise InvalidRequest('If-Match is `*`, or holds an ETag with its quotes: `"3"`.', param="If-Match")
    if not any(not weak and tag == str(revision) for weak, tag in _TAG.findall(sent)):
        raise RevisionMismatch(
            f"{name} is at revision {revision}, not {sent.strip()}: it was changed meanwhile; read it again.",
            param="If-Match",
        )
    return revision


def marked(response: Response, known: Known) -> None:
    """Send the model's revision as ETag."""
    if known.record is not None:
        response.headers["etag"] = f'"{known.record.revision}"'


ETAG = {"headers": {"ETag": {"description": "Its revision.", "schema": {"type": "string"}}}}


@contextmanager
def refusing() -> Iterator[None]:
    """Failures of a model that somebody wants to register: what its fields or files are refused for is said
    with 422, a source that cannot be asked with 502."""
    try:
        yield
    except RestartNeeded:
        raise
    except ConfigRefused as error:
        raise SpecRefused(error.message, param=error.param) from error
    except DiskFull:
        raise
    except (DownloadFailed, SourceOffline) as error:
        raise SourceUnreachable(error.message, retry_after=error.retry_after, param="source") from error
    except StoreError as error:
        raise SpecRefused(error.message, param="source") from error
