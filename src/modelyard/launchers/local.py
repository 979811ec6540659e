"""Engines as processes of this machine, each under a shim (`launchers.shim`) of its own.

Made by compose, called by the driver. Owns one folder: the state file, the sockets and the output files in
it. It allocates addresses, builds the environment, and observes exits; it decides nothing, and it never
signals a process that it cannot prove to be its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import structlog

from modelyard.core.types import Address
from modelyard.engines.base import Command, Exit
from modelyard.errors import ConfigError
from modelyard.launchers.base import Launch, LaunchFailed
from modelyard.launchers.child import START_DEADLINE, Child
from modelyard.launchers.processes import MARK, Process, boot_id, marked, reap
from modelyard.launchers.spare import Spare, order
from modelyard.launchers.state import Record, State

CLOSE_GRACE = 2.0
OUTPUT_CAP = 4 * 1024 * 1024
KEPT_LOGS = 64  # output files of instances that are gone
SOCKET_PATH_MAX = 107  # sockaddr_un.sun_path without its final NUL
_TAIL_BYTES = 64 * 1024  # what is read of a file's end first; more when it holds too few lines

# What an engine inherits; everything else comes from its profile and its placement.
# Proxy variables are not in it: their URLs may hold passwords.
_INHERITED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"}
    | {"XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"}
)
_INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "ROCM_", "ROCR_", "HIP_", "HSA_", "OMP_")
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_log = structlog.get_logger(__name__)


class LocalLauncher:
    """The `Launcher` contract on this machine. `folder` is its own; `environ` is what engines may inherit
    from (default: this process's); `output_cap` bounds each output file, in bytes."""

    def __init__(
        self, folder: Path, *, environ: Mapping[str, str] | None = None, output_cap: int = OUTPUT_CAP
    ) -> None:
        self.on_exit: Callable[[str, Exit], None] = lambda instance, exit: None
        self._folder = folder
        self._environ = os.environ if environ is None else environ
        self._output_cap = output_cap
        self._state = State(folder)
        self._boot = boot_id()
        self._children: dict[str, Child] = {}
        self._spare: Spare | None = None
        self._ports: set[int] = set()
        self._sockets = folder / "run"
        self._logs = folder / "logs"
        self._own = folder.absolute() / "own"
        self._open = False

    @property
    def problem(self) -> str:
        """See `Launcher.problem`."""
        return self._state.problem

    async def open(self) -> list[str]:
        """Take the folder and reap what an earlier life left. Raises ConfigError when the folder is in use
        or cannot be written."""
        reaped = await asyncio.to_thread(self._take_folder)
        self._open = True
        return reaped

    async def start(self, launch: Launch) -> Address:
        """See `Launcher.start`. Raises LaunchFailed also when the instance runs already."""
        if not self._open:
            raise LaunchFailed(f"{launch.instance} cannot be started: the launcher is closed")
        if launch.instance in self._children:
            raise LaunchFailed(f"{launch.instance} is running already")
        address = self._allocate(launch)
        mark = self._mark(launch.instance)
        try:
            child = self._spawn(launch, address, mark)
        except BaseException:
            self._free(launch.instance, address)
            raise
        try:
            async with asyncio.timeout(START_DEADLINE):
                pid = await child.started
            if not child.gone.is_set():
                self._remember(launch.instance, mark, pid)
        except TimeoutError:
            child.abandon()
            await child.stop(0)
            raise LaunchFailed(
                f"{launch.instance}: the shim did not answer within {START_DEADLINE:g} s"
            ) from None
        except BaseException:
            child.abandon()
            await child.stop(0)
            raise
        child.report_exit()
        return address

    async def stop(self, instance: str, grace: float) -> None:
        """See `Launcher.stop`. What stops mostly makes room: the next shim starts while this engine ends."""
        if (child := self._children.get(instance)) is not None:
            child.ask_to_stop(grace)
            self._prepare()
            await child.stopped(grace)

    async def close(self) -> None:
        """See `Launcher.close`. Idempotent."""
        self._open = False
        if self._spare is not None:
            self._spare.discard()
            self._spare = None
        await asyncio.gather(*(child.stop(CLOSE_GRACE) for child in list(self._children.values())))
        if self._state.held:  # else another's engines may have their sockets there
            with contextlib.suppress(OSError):  # not empty
                self._sockets.rmdir()
        self._state.close()

    def pids(self, instance: str) -> list[int]:
        """Every live process of the instance: the engine first, the shim last. Reads /proc: a few ms."""
        child = self._children.get(instance)
        return [] if child is None else child.pids()

    def held(self, instance: str) -> None:
        """See `Launcher.held`."""

    def log(self, instance: str) -> Path | None:
        """See `Launcher.log`."""
        path = self._log_path(instance)
        return path if path.exists() else None

    def tail(self, instance: str, lines: int = 20) -> str:
        """See `Launcher.tail`. A progress line that was rewritten in place counts as its last state."""
        try:
            with self._log_path(instance).open("rb") as file:
                text = _last_lines(file, lines).decode(errors="replace")
        except OSError:
            return ""
        shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\n").split("\n")]
        return "\n".join(shown[-lines:]) if lines > 0 else ""

    # -- starting -----------------------------------------------------------------------------------------

    def _spawn(self, launch: Launch, address: Address, mark: str) -> Child:
        command = launch.command(address)
        instance = launch.instance
        if not isinstance(command, Command) or not command.argv:
            raise LaunchFailed(f"{instance} has no command line")

        def on_gone() -> None:
            self._forget(instance, address)

        self._prune_logs()
        try:
            cwd = self._new_folder(instance) if command.own_folder else command.cwd or ""
            environment = self._environment(launch, command, mark)
            what = order(command.argv, environment, cwd, *self._output(instance))
            child = Child(
                self._take_spare(),
                what,
                mark=mark,
                program=command.argv[0],
                cwd=cwd,
                on_exit=lambda exit: self.on_exit(instance, exit),
                on_gone=on_gone,
            )
        except (OSError, ValueError) as error:
            raise LaunchFailed(f"{command.argv[0]} cannot be started: {error}") from error
        self._children[instance] = child
        return child

    def _output(self, instance: str) -> tuple[Path, int]:
        """An empty file for the output, and its cap. Where none can be made, as on some full disks, the
        output is lost and nothing else."""
        path = self._log_path(instance)
        try:
            path.open("wb").close()
        except OSError as error:
            _log.warning("output.not_kept", instance=instance, reason=str(error))
            return Path(os.devnull), sys.maxsize  # never full: so it is never folded into a new file
        return path, self._output_cap

    def _prepare(self) -> None:
        """Have a spare at hand. Without one the next start takes a few milliseconds more, and says why it
        fails if it does."""
        if self._open and self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = self._new_spare()

    def _take_spare(self) -> Spare:
        spare, self._spare = self._spare, None
        if spare is not None and spare.alive:
            return spare
        if spare is not None:
            spare.discard()
        return self._new_spare()

    def _new_spare(self) -> Spare:
        # Marked as ours, but as no instance: a next life that finds one frozen ends it.
        return Spare({**self._inherited(), MARK: self._mark("")})

    def _mark(self, instance: str) -> str:
        return f"{self._state.owner}/{secrets.token_hex(8)}/{instance}"

    def _remember(self, instance: str, mark: str, pid: int) -> None:
        process = Process.find(pid)
        if process is not None:  # it may have ended at once; then its exit is on the way
            self._state.put(Record(instance, pid, process.start, self._boot, mark))

    def _forget(self, instance: str, address: Address) -> None:
        del self._children[instance]
        self._free(instance, address)
        self._state.drop(instance)

    def _environment(self, launch: Launch, command: Command, mark: str) -> dict[str, str]:
        """What is inherited, then what was given on purpose."""
        return {**self._inherited(), **launch.environment, **command.environment, MARK: mark}

    def _inherited(self) -> dict[str, str]:
        """The allow-list without anything that is named like a secret."""
        return {
            name: value
            for name, value in self._environ.items()
            if (name in _INHERITED or name.startswith(_INHERITED_PREFIXES))
            and not _SECRET.search(name)
            # An inherited mask limits discovery; on top of a placement's own it would hide its devices.
            and not name.endswith("_VISIBLE_DEVICES")
        }

    # -- addresses ----------------------------------------------------------------------------------------

    def _allocate(self, launch: Launch) -> Address:
        if launch.unix:
            path = self._sockets / f"{_short(launch.instance)}.sock"
            path.unlink(missing_ok=True)  # an engine that finds its socket there does not start
            return Address(path=str(path))
        for _ in range(100):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in self._ports:  # two starts at once must not be given the same one
                self._ports.add(port)
                return Address(port=port)
        raise LaunchFailed(f"{launch.instance} cannot be started: no free port on 127.0.0.1")

    def _free(self, instance: str, address: Address) -> None:
        self._ports.discard(address.port)
        if address.path:
            Path(address.path).unlink(missing_ok=True)
        shutil.rmtree(self._own / _short(instance), ignore_errors=True)

    # -- the folder ---------------------------------------------------------------------------------------

    def _take_folder(self) -> list[str]:
        try:
            reaped = self._reap_leftovers(self._state.open())
            self._logs.mkdir(exist_ok=True, mode=0o700)
            shutil.rmtree(self._own, ignore_errors=True)
            self._sockets = self._socket_folder()
            for stale in itertools.chain(self._sockets.glob("*.sock"), self._logs.glob("*.new")):
                stale.unlink(missing_ok=True)
            self._state.clear()
        except OSError as error:
            self._state.close()
            what = error.filename or self._folder  # an error of a write names no file
            raise ConfigError(
                "server.data_dir",
                f"{what} cannot be written: {error.strerror or error}; "
                "give it room or rights, or name another folder as `server.data_dir`",
            ) from error
        except BaseException:
            self._state.close()
            raise
        return reaped

    def _reap_leftovers(self, records: list[Record]) -> list[str]:
        """Processes of this boot with a mark of this folder, or with exactly a recorded identity and mark."""
        recorded = {record.mark for record in records if record.boot == self._boot}
        prefix = f"{self._state.owner}/"

        def belongs(mark: str) -> bool:
            return mark.startswith(prefix) or mark in recorded

        names = {mark.split("/", 2)[-1] for mark in marked(belongs).values()}
        if names and not reap(belongs):
            raise ConfigError(
                "server.data_dir", f"leftover processes of {', '.join(sorted(names))} cannot be killed"
            )
        return sorted(names - {""})

    def _socket_folder(self) -> Path:
        """`run/` in the folder, or a short path elsewhere when a socket's name would not fit the kernel."""
        name = f"modelyard-{self._state.owner}"
        elsewhere = (self._environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")  # noqa: S108
        candidates = [self._folder / "run", *(Path(base) / name for base in elsewhere if base)]
        room = SOCKET_PATH_MAX - len(f"/{_short('')}.sock")
        # /tmp always fits, and what is made there must be this user's own.
        folder = next(
            one for one in (path.absolute() for path in candidates) if len(os.fsencode(one)) <= room
        )
        folder.mkdir(exist_ok=True, mode=0o700)
        seen = folder.lstat()
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
            raise ConfigError("server.data_dir", f"{folder} is not a folder of this user; remove it")
        folder.chmod(0o700)
        return folder

    def _new_folder(self, instance: str) -> str:
        folder = self._own / _short(instance)
        folder.mkdir(parents=True, mode=0o700)
        return str(folder)

    def _log_path(self, instance: str) -> Path:
        plain = re.sub(r"[^A-Za-z0-9._@-]", "_", instance)[:100]
        return self._logs / (f"{plain}.log" if plain == instance else f"{plain}-{_short(instance)}.log")

    def _prune_logs(self) -> None:
        logs = list(self._logs.glob("*.log"))
        if len(logs) < KEPT_LOGS + len(self._children):
            return
        live = {self._log_path(instance) for instance in self._children}
        ended = sorted((path for path in logs if path not in live), key=lambda path: path.stat().st_mtime)
        for path in ended[: max(0, len(ended) - KEPT_LOGS + 1)]:
            path.unlink(missing_ok=True)


def _last_lines(file: BinaryIO, lines: int) -> bytes:
    """The end of a file, from the beginning of a line: at least so many lines where there are as many."""
    end, size = file.seek(0, os.SEEK_END), _TAIL_BYTES
    while True:
        start = max(0, end - size)
        file.seek(start)
        text = file.read(end - start)
        if start == 0:
            return text
        if text.count(b"\n") > lines:
            return text.partition(b"\n")[2]  # the first may be cut
        size *= 4


def _short(instance: str) -> str:
    return hashlib.sha256(instance.encode()).hexdigest()[:12]
