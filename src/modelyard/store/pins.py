"""What follows the `#` of a source: which bytes are meant. `https://host/file.gguf#sha256=…`

People write `sha256` (and `version`, of an object); the rest is added when a source is resolved, so that it
stands for the same bytes ever after.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Self
from urllib.parse import parse_qsl, urlencode

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pins:
    """`sha256` in hex, the object's `version` and `etag`, its `size` in bytes; empty where not known."""

    sha256: str = ""
    version: str = ""
    etag: str = ""
    size: str = ""

    @classmethod
    def split(cls, source: str) -> tuple[str, Self]:
        """A source without what follows its `#`, and that. Raises ValueError with what is wrong with it."""
        base, _, text = source.partition("#")
        try:
            found = dict(parse_qsl(text, strict_parsing=True)) if text else {}
            pins = cls(**found)
        except (ValueError, TypeError):
            raise ValueError("has a # that no sha256=HEX follows; a # in a name is written %23") from None
        if pins.sha256 and not _SHA256.fullmatch(pins.sha256):
            raise ValueError("has a sha256 that is not 64 digits of hex, in small letters")
        if pins.size and not (pins.size.isascii() and pins.size.isdigit()):
            raise ValueError("has a size that is no number")
        return base, pins

    def onto(self, base: str) -> str:
        """The source with these pins."""
        known = {one.name: value for one in fields(self) if (value := getattr(self, one.name))}
        return f"{base}#{urlencode(known)}" if known else base

    @property
    def bytes(self) -> int | None:
        """The size, None where it is not known."""
        return int(self.size) if self.size else None
