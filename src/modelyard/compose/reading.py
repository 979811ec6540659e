"""A configuration read from its files while they may be written: only what has been at rest counts.

Used by `live`.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from modelyard.config import Config, ConfigErrors, Problem, load
from modelyard.config.reading import FilesRead
from modelyard.errors import ConfigError

log = structlog.get_logger(__name__)

AT_REST_WITHIN = 10.0  # seconds until files that are written all the time are given up


def _as_it_is(config: Config) -> Config:
    return config


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a configuration came from: the file (None: none that could be read again) and how it was when it
    was read, what the command line says beside it, and whether a change of the file is to be noticed. `poll`:
    seconds between two looks at the files; as long they have to be at rest."""

    path: Path | None = None
    reading: FilesRead | None = None
    adjust: Callable[[Config], Config] = _as_it_is
    watch: bool = True
    poll: float = 1.0


async def read(path: Path, origin: Origin, *, foreign: bool) -> tuple[FilesRead, Config]:
    """The configuration of a file that is at rest, with what it includes, adjusted as the origin's. `foreign`
    files, which the start did not name, have to be this user's own. Raises NotRead, which holds the reading
    as well."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + AT_REST_WITHIN
    while True:
        reading = FilesRead(_is_own if foreign else _is_regular)
        found: Config | ConfigError
        try:
            found = origin.adjust(await asyncio.to_thread(load, path, reading=reading))
        except ConfigError as error:  # it may be half of what will be there
            found = error
        except Exception as bug:
            log.exception("config.failed")
            found = as_problem(bug)
        rest = origin.poll - (time.time() - reading.changed_at)
        if rest > 0:
            await asyncio.sleep(min(rest, origin.poll))
        if await asyncio.to_thread(reading.unchanged):
            break
        if loop.time() >= deadline:
            message = f"{path} or what it includes has been written all the time for {AT_REST_WITHIN:g} s"
            found = ConfigErrors([Problem("", message)])
            break
    if isinstance(found, ConfigError):
        raise NotRead(reading, found)
    return reading, found


def as_problem(bug: Exception) -> ConfigError:
    """A bug is a problem of the file that it struck: it is said, and not met again until that changes."""
    return ConfigError("", f"a bug prevents it ({type(bug).__name__}); see the log")


class NotRead(Exception):
    """A configuration was refused while it was read, as `error` says."""

    def __init__(self, reading: FilesRead, error: ConfigError) -> None:
        super().__init__(str(error))
        self.reading = reading
        self.error = error


def _is_regular(path: Path, found: os.stat_result) -> None:
    """A pipe can be read once."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigErrors([Problem("", f"{path} is not a regular file, which could be read again")])


def _is_own(path: Path, found: os.stat_result) -> None:
    """A configuration says which programs are run: whoever may call the control surface must not have the
    server run those of others."""
    _is_regular(path, found)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
        message = "belongs to another user than the server, or everybody may write it; it is not read"
        raise ConfigErrors([Problem("", f"{path} {message}")])
