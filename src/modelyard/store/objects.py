"""Objects in buckets: `s3://BUCKET/key`, `gs://BUCKET/key`, also with `#sha256=HEX` or `#version=ID`.

Used by `cache`. What needs the package obstore is in `objects_client`, which is imported for a fetch alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Self
from urllib.parse import unquote

from modelyard.config.values import S3Setting
from modelyard.store.head import beginning_of
from modelyard.store.pace import Pace
from modelyard.store.pins import Pins
from modelyard.store.source import Exact, Source, Watch

if TYPE_CHECKING:
    from modelyard.store.objects_client import ObjectsClient

_SOURCE = re.compile(r"(s3|gs)://([A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9])/([^?]+)")


@dataclass(frozen=True, slots=True)
class ObjectName:
    """One object; `key` as the server has it. `text` is the source without its pins."""

    scheme: str
    bucket: str
    key: str
    text: str
    pins: Pins

    @classmethod
    def parse(cls, source: str) -> Self:
        """Raises ValueError with what is wrong with the text."""
        base, pins = Pins.split(source)
        match = _SOURCE.fullmatch(base)
        if match is None:
            raise ValueError(
                "is not s3://BUCKET/KEY (or gs://); ?, # and % in a key are written %3F, %23, %25"
            )
        key = unquote(match[3])
        if key.endswith("/"):
            raise ValueError("names a folder; name one object in it")
        if any(part in {"", ".", ".."} for part in key.split("/")) or not key.isprintable():
            raise ValueError("has a key with empty parts, dots alone, or characters that cannot be printed")
        return cls(match[1], match[2], key, base, pins)


class ObjectFiles(Source):
    """See `source.Source`. `environ` is where credentials are looked for after `setting` (default: this
    process's, which obstore reads too)."""

    schemes: ClassVar[tuple[str, ...]] = ("s3", "gs")
    resumes: ClassVar[bool] = True

    def __init__(
        self,
        setting: S3Setting | None = None,
        pace: Pace | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._setting = setting or S3Setting()
        self._pace = pace or Pace()
        self._environ = os.environ if environ is None else environ

    def problem(self, source: str) -> str | None:
        try:
            ObjectName.parse(source)
        except ValueError as error:
            return str(error)
        return None

    def resolve(self, source: str, watch: Watch) -> Exact:
        return self._client(ObjectName.parse(source), watch).resolve()

    def head(self, source: str, watch: Watch) -> AbstractContextManager[BinaryIO]:
        return beginning_of(self._client(ObjectName.parse(source), watch), watch)

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        return self._client(ObjectName.parse(source), watch).fetch(source, folder)

    def _client(self, name: ObjectName, watch: Watch) -> ObjectsClient:
        from modelyard.store.objects_client import ObjectsClient  # noqa: PLC0415

        return ObjectsClient(name, self._setting, self._environ, watch, self._pace)
