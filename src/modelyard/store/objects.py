"""Objects in buckets: `s3://BUCKET/key`, `gs://BUCKET/key`, also with `#sha256=HEX` or `#version=ID`; and
folders of them, whose key ends with `/`.

Used by `cache`. What needs the package obstore is in `objects_client`, which is imported for a fetch alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Self
from urllib.parse import quote, unquote

from modelyard.config.values import S3Setting
from modelyard.errors import SourceNotFound
from modelyard.store.folders import Member, listed, to_list
from modelyard.store.head import beginning_of
from modelyard.store.pace import Pace
from modelyard.store.pins import Pins
from modelyard.store.source import Exact, Source, Watch

if TYPE_CHECKING:
    from modelyard.store.objects_client import ObjectsClient

_SOURCE = re.compile(r"(s3|gs)://([A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9])/([^?]*)")


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
        parts = key.removesuffix("/").split("/") if key else []
        if any(part in {"", ".", ".."} for part in parts) or not key.isprintable():
            raise ValueError("has a key with empty parts, dots alone, or characters that cannot be printed")
        return cls(match[1], match[2], key, base, pins)

    @property
    def is_folder(self) -> bool:
        return self.key[-1:] in {"", "/"}

    def within(self, key: str, pins: Pins) -> str:
        """The source of another object in this bucket."""
        for letter in "%?#":
            key = key.replace(letter, quote(letter))
        return pins.onto(f"{self.scheme}://{self.bucket}/{key}")


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
            name = ObjectName.parse(source)
        except ValueError as error:
            return str(error)
        if name.is_folder and name.pins != Pins():
            return "says what follows # of a folder; name one object, or write `sha256` at the model"
        return None

    def is_folder(self, source: str) -> bool:
        return ObjectName.parse(source).is_folder

    def resolve(self, source: str, watch: Watch) -> Exact:
        name = ObjectName.parse(source)
        if name.is_folder:
            digest = sha256(self._list(name, watch)).hexdigest()
            return Exact(replace(name.pins, sha256=digest).onto(name.text), digest)
        return self._client(name, watch).resolve()

    def head(self, source: str, watch: Watch) -> AbstractContextManager[BinaryIO]:
        name = ObjectName.parse(source)
        if name.is_folder:
            return BytesIO(self._list(name, watch))
        return beginning_of(self._client(name, watch), watch)

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        name = ObjectName.parse(source)
        if name.is_folder:
            path = folder / "list"
            path.write_bytes(self._list(name, watch))
            return path
        return self._client(name, watch).fetch(source, folder)

    def _list(self, name: ObjectName, watch: Watch) -> bytes:
        """The list (see `folders`) of a folder, which is the one that it was resolved to."""
        found = self._client(name, watch).inside()
        members = [
            Member(key.removeprefix(name.key), size, name.within(key, Pins(etag=etag, size=str(size))))
            for key, size, etag in found
        ]
        content = to_list(listed(members, watch.source))
        if name.pins.sha256 not in {"", sha256(content).hexdigest()}:
            raise SourceNotFound(
                f"{watch.source}: the folder holds other files than when it was first fetched; to take it as "
                f"it is now, forget it: modelyard cache prune {name.text}"
            )
        return content

    def _client(self, name: ObjectName, watch: Watch) -> ObjectsClient:
        from modelyard.store.objects_client import ObjectsClient  # noqa: PLC0415

        return ObjectsClient(name, self._setting, self._environ, watch, self._pace)
