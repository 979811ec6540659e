"""A source of a few bytes that tests give it, and small files that are what they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from engines.gguf_file import gguf
from modelyard.store import Source, Watch
from modelyard.store.source import Exact


def weights(name: str, size: int = 2000) -> bytes:
    """A GGUF file of `size` bytes, another one for each name."""
    content = gguf({"general.name": name}, [("token_embd.weight", (64,), 0)])
    return content + bytes(size - len(content))


class Bytes(Source):
    """`bytes://NAME` is what `content` has under that name; `fetched` names each that was asked for."""

    schemes: ClassVar[tuple[str, ...]] = ("bytes",)

    def __init__(self, content: Mapping[str, bytes] | None = None) -> None:
        self.content = dict(content or {})
        self.fetched: list[str] = []
        self.digests: dict[str, str] = {}

    def problem(self, source: str) -> str | None:
        return None

    def resolve(self, source: str, watch: Watch) -> Exact:
        return Exact(source, self.digests.get(source.removeprefix("bytes://")))

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        name = source.removeprefix("bytes://")
        content = self.content[name]
        self.fetched.append(name)
        watch.room(folder, len(content))
        watch.progress(0, len(content))
        path = folder / "download"
        path.write_bytes(content)
        return path
