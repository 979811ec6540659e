"""The state file of the local launcher: which processes belong to it, for the life after this one.

Owned by `launchers.local`. One folder is owned by one process at a time (a lock that ends with its holder).
The file is replaced whole, never edited; a file that cannot be read is set aside, because processes are
found by their mark as well. For the same reason a disk that takes nothing stops no instance: records that
cannot be written stay in memory, and are tried again.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from modelyard.errors import ConfigError

RETRY = 10.0  # seconds between tries while the disk takes nothing
_VERSION = 1
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One started instance. `start` and `boot` make the pid unambiguous; `mark` is in its environment."""

    instance: str
    pid: int
    start: int
    boot: str
    mark: str


class State:
    """The records in `folder`, and the lock on it. `owner` is the first part of every mark given out here;
    `problem` is what the disk says while it takes no record. `put` and `drop` are for the event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "instances.json"
        self.owner = ""
        self.problem = ""
        self._again: asyncio.TimerHandle | None = None
        self._lock: int | None = None
        self._records: dict[str, Record] = {}

    def open(self) -> list[Record]:
        """Take the folder and return what an earlier life recorded. Raises ConfigError when another process
        holds it, and OSError when it cannot be written; then nothing is held."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise ConfigError(
                "server.data_dir",
                f"{self.folder} is in use by another Modelyard (pid {holder}); "
                "stop it, or name another folder as `server.data_dir`",
            ) from None
        self._lock = lock
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            self.owner = self._identity()
            records = self._read()
        except BaseException:
            self.close()
            raise
        self._records = {}
        return records

    @property
    def held(self) -> bool:
        """Whether the folder is this one's: from `open` to `close`."""
        return self._lock is not None

    def close(self) -> None:
        """Give the folder back. Idempotent."""
        self._cancel_retry()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def put(self, record: Record) -> None:
        """Remember a started instance, on disk when this returns and there is no `problem`."""
        self._records[record.instance] = record
        self._save()

    def drop(self, instance: str) -> None:
        """Forget an instance that is gone."""
        if self._records.pop(instance, None) is not None:
            self._save()

    def clear(self) -> None:
        """Forget everything: called once leftovers are reaped. Raises OSError when that cannot be written."""
        self._records = {}
        self._write()

    def _identity(self) -> str:
        stat = self.folder.stat()
        text = f"{stat.st_dev}:{stat.st_ino}:{self.folder.resolve()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _read(self) -> list[Record]:
        try:
            content = json.loads(self.path.read_bytes())
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            return [Record(**record) for record in content["instances"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError):
            os.replace(self.path, self.path.with_suffix(".broken"))
            return []

    def _save(self) -> None:
        """Write the records; what keeps them from it is said once, and tried again until it is gone."""
        self._cancel_retry()
        try:
            self._write()
        except OSError as error:
            if not self.problem:
                _log.error("state.not_written", path=str(self.path), reason=str(error))
            self.problem = error.strerror or type(error).__name__
            self._again = asyncio.get_running_loop().call_later(RETRY, self._save)
        else:
            if self.problem:
                _log.warning("state.written_again", path=str(self.path))
            self.problem = ""

    def _cancel_retry(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _write(self) -> None:
        content = {"version": _VERSION, "instances": [asdict(record) for record in self._records.values()]}
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        os.replace(fresh, self.path)
