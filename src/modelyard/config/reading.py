"""The files that a configuration was read from, so that a later look can tell whether one of them changed.

Filled by `load`; asked by whoever reads a configuration anew while it is served.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Stamp = tuple[int, int, int, int, int] | None  # None: there is no such file


@dataclass(slots=True)
class FilesRead:
    """`check` looks at each file before anything is read of it, and may raise ConfigErrors."""

    check: Callable[[Path, os.stat_result], None] | None = None
    _files: dict[Path, Stamp] = field(default_factory=dict)
    _globs: dict[tuple[Path, str], tuple[Path, ...]] = field(default_factory=dict)
    _newest: float = 0.0

    def see(self, path: Path, found: os.stat_result | None) -> None:
        """A file is read now, or is not there."""
        self.note(path, found)
        if found is not None and self.check is not None:
            self.check(path, found)

    def note(self, path: Path, found: os.stat_result | None) -> None:
        """This is there now, and is not read."""
        self._files[path] = None if found is None else _stamp(found)
        self._newest = max(self._newest, time.time() if found is None else found.st_ctime)

    def glob(self, folder: Path, pattern: str) -> list[Path]:
        """The files that an `include` with a pattern names now."""
        found = _glob(folder, pattern)
        self._globs[folder, pattern] = tuple(found)
        return found

    @property
    def changed_at(self) -> float:
        """When one of the files changed last (seconds since the epoch): now, if one is not there."""
        return self._newest

    def unchanged(self) -> bool:
        """Whether every file is still what it was when it was read, and no pattern finds another."""
        return all(_look(path) == stamp for path, stamp in self._files.items()) and all(
            tuple(_glob(folder, pattern)) == found for (folder, pattern), found in self._globs.items()
        )


def _glob(folder: Path, pattern: str) -> list[Path]:
    """As a shell has it: what begins with a dot, as an editor's lock does, is not meant."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _look(path: Path) -> Stamp:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
