"""Files that are on this machine already: absolute paths and `file://`. They are used where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, ClassVar
from urllib.parse import unquote, urlsplit

from modelyard.errors import SourceNotFound
from modelyard.store.source import Source, StoredFile, Watch


class LocalFiles(Source):
    """See `source.Source`. The empty scheme stands for a plain path."""

    schemes: ClassVar[tuple[str, ...]] = ("", "file")

    def problem(self, source: str) -> str | None:
        if source.startswith("file://") and urlsplit(source).netloc not in {"", "localhost"}:
            return "names another machine; write file:///path"
        if not local_path(source).is_absolute():
            return "is a relative path; only configuration knows from where, write it in full here"
        return None

    def is_folder(self, source: str) -> bool:
        return local_path(source).is_dir()

    def head(self, source: str, watch: Watch) -> BinaryIO:
        return self.fetch(source, Path(), watch).open("rb")

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        if problem := absent(source):
            raise SourceNotFound(problem)
        return local_path(source)


def is_local(source: str) -> bool:
    """Whether a source is a path on this machine."""
    return "://" not in source or source.startswith("file://")


def absent(source: str) -> str | None:
    """Why a source that has to lie on this machine is no file; None when it is one, or of another scheme.
    Costs a stat."""
    if not is_local(source):
        return None
    path = local_path(source)
    if path.is_dir():
        return f"{path} is a folder; name one file in it"
    if not path.is_file():
        return f"{path} does not exist or is not a file; check the model's source"
    return None


def lying(source: str) -> StoredFile | None:
    """The file of a source that lies on this machine, not read yet: without its digest. None for any other
    source. Costs a stat."""
    if not is_local(source) or absent(source):
        return None
    path = local_path(source)
    return StoredFile(path, path.stat().st_size, "")


def local_path(source: str) -> Path:
    """The path in a plain or `file://` source."""
    return Path(unquote(urlsplit(source).path) if source.startswith("file://") else source)
