"""Files on web servers: `https://HOST/path`, also with `#sha256=HEX`; `http://` where the operator allows it.

Used by `cache`. What needs a connection is in `http_client`, which is imported when a file is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, ClassVar
from urllib.parse import urlsplit

from modelyard.store.addresses import Guard
from modelyard.store.head import beginning_of
from modelyard.store.pace import Pace, Patience
from modelyard.store.pins import Pins
from modelyard.store.source import Exact, Source, Watch
from modelyard.store.transfer import download


class WebFiles(Source):
    """See `source.Source`. `guard` says where an address may lead."""

    schemes: ClassVar[tuple[str, ...]] = ("https", "http")
    resumes: ClassVar[bool] = True

    def __init__(self, guard: Guard | None = None, pace: Pace | None = None) -> None:
        self._guard = guard or Guard()
        self._pace = pace or Pace()

    def problem(self, source: str) -> str | None:
        try:
            base, _ = Pins.split(source)
        except ValueError as error:
            return str(error)
        try:
            parts = urlsplit(base)
            is_address = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", base)
        except ValueError:  # its text may hold a part of a password
            is_address = False
        if not is_address:
            return (
                "is not https://HOST[:PORT]/path; a space is written %20, / and @ in a password %2F and %40"
            )
        if parts.scheme == "http" and not self._guard.allows_any:
            return "is not encrypted; write https://, or name its host in `store.allow_private`"
        return None

    def resolve(self, source: str, watch: Watch) -> Exact:
        from modelyard.store.http_client import HttpClient, HttpRemote  # noqa: PLC0415

        base, pins = Pins.split(source)
        with HttpClient(self._guard, watch, 1) as client, watch.on_stop(client.abort):
            remote = HttpRemote(client, base, watch)

            def size() -> int | None:
                with remote.open(0, 1, "") as answer:
                    return answer.size

            told = Patience(watch, self._pace.pauses).insist(size)
        exact = replace(pins, size="" if told is None else str(told))
        return Exact(exact.onto(base), pins.sha256 or None)

    @contextmanager
    def head(self, source: str, watch: Watch) -> Iterator[BinaryIO]:
        from modelyard.store.http_client import HttpClient, HttpRemote  # noqa: PLC0415

        base, _ = Pins.split(source)
        with (
            HttpClient(self._guard, watch, 1) as client,
            beginning_of(HttpRemote(client, base, watch), watch) as file,
        ):
            yield file

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        from modelyard.store.http_client import HttpClient, HttpRemote  # noqa: PLC0415

        base, pins = Pins.split(source)
        with HttpClient(self._guard, watch, self._pace.connections) as client:
            return download(
                HttpRemote(client, base, watch),
                folder,
                watch,
                self._pace,
                identity=source,
                size=pins.bytes,
                pinned=bool(pins.sha256),
            )
