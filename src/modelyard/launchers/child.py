"""One shim and the engine under it, observed from the event loop.

Made by `launchers.local` only. Reports the engine's exit once, and knows when the whole tree is gone: the
shim says so by ending, and when the shim was killed itself the tree is found by its mark and killed here.
Needs no task while the engine runs: the control socket and the shim's pidfd are watched by the loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable

import structlog

from modelyard.core.types import Cause
from modelyard.engines.base import Exit
from modelyard.launchers import shim
from modelyard.launchers.base import LaunchFailed
from modelyard.launchers.processes import Process, reap
from modelyard.launchers.spare import Spare

START_DEADLINE = 10.0  # the shim answers in milliseconds
STOP_MARGIN = 5.0  # what KILL and the reaping of a tree may take
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC})
_log = structlog.get_logger(__name__)


class Child:
    """A shim with its order. `started` resolves to the engine's pid or raises LaunchFailed; `gone` is set
    when no process of the tree is left, and after `on_gone` was called. Making one takes the spare over; it
    raises OSError when the spare cannot be given the order, and leaves nothing behind."""

    def __init__(
        self,
        spare: Spare,
        order: bytes,
        *,
        mark: str,
        program: str,
        cwd: str,
        on_exit: Callable[[Exit], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._mark = mark
        self._on_exit = on_exit
        self._on_gone = on_gone
        self._known: set[Process] = set()
        self._received = b""
        self._exit: Exit | None = None
        self._reporting = False  # True from the moment that `start` has returned
        self._abandoned = False
        self._reaping: asyncio.Task[None] | None = None
        self._program = program
        self._cwd = cwd
        self.started: asyncio.Future[int] = self._loop.create_future()
        self.gone = asyncio.Event()

        spare.run(order)
        self._control, self._shim, self._pidfd = spare.control, spare.process, spare.pidfd
        self._loop.add_reader(self._control.fileno(), self._readable)
        self._loop.add_reader(self._pidfd, self._shim_ended)

    def pids(self) -> list[int]:
        """The engine, its descendants and the shim; empty when the tree is gone."""
        if self.gone.is_set():
            return []
        pids = [*shim.descendants(self._shim.pid)]
        if self._running_pid in pids:
            pids.remove(self._running_pid)
            pids.insert(0, self._running_pid)
        # Remembered, so that processes without a mark are found when the shim is killed.
        self._known = {process for pid in pids if (process := Process.find(pid)) is not None}
        return [*pids, self._shim.pid]

    async def stop(self, grace: float) -> None:
        """TERM the tree, KILL after `grace` seconds; returns when it is gone. A shim that does not answer is
        killed, and the tree with it."""
        self.ask_to_stop(grace)
        await self.stopped(grace)

    def ask_to_stop(self, grace: float) -> None:
        """The first half of `stop`: returns at once."""
        try:
            self._control.send(f"stop {grace:f}\n".encode())
        except OSError:
            return  # closed or broken: the shim has ended, or its end is being handled

    async def stopped(self, grace: float) -> None:
        """The second half of `stop`: returns when the tree is gone."""
        try:
            async with asyncio.timeout(grace + STOP_MARGIN):
                await self.gone.wait()
        except TimeoutError:
            self._shim.kill()
            await self.gone.wait()  # bounded: reap() has a deadline

    def report_exit(self) -> None:
        """The start has returned: from now on, and never before, `on_exit` may be called."""
        self._reporting = True
        if self._exit is not None:
            self._loop.call_soon(self._on_exit, self._exit)

    def abandon(self) -> None:
        """The start has failed: there will be no exit to report."""
        self._abandoned = True

    @property
    def _running_pid(self) -> int:
        done = self.started.done() and not self.started.cancelled() and self.started.exception() is None
        return self.started.result() if done else -1

    def _readable(self) -> None:
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._control.fileno())
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._reported(line.decode().split())

    def _reported(self, words: list[str]) -> None:
        match words:
            case ["started", pid] if not self.started.done():
                self.started.set_result(int(pid))
            case ["failed", stage, number]:
                message = _reason(stage, int(number), self._program, self._cwd)
                self._fail_start(message, Cause.NOT_INSTALLED if int(number) in _MISSING else Cause.LAUNCH)
            case ["exit", "code", code]:
                self._report(Exit(code=int(code)))
            case ["exit", "signal", number]:
                self._report(Exit(code=None, signal=int(number)))

    def _fail_start(self, message: str, cause: Cause = Cause.LAUNCH) -> None:
        self.abandon()
        if not self.started.done():
            self.started.set_exception(LaunchFailed(message, cause=cause))
            self.started.exception()  # the caller may have been cancelled: retrieved here

    def _report(self, exit: Exit) -> None:
        if self._exit is None and not self._abandoned:
            self._exit = exit
            if self._reporting:
                try:
                    self._on_exit(exit)
                except Exception:  # the tree has to be cleaned up all the same
                    _log.exception("exit.not_taken")

    def _shim_ended(self) -> None:
        """The shim is dead: read its last words, then make sure of the tree."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._shim.wait()
        self._readable()
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        self._fail_start_if_unheard(status)
        if status == 0:
            self._finish()
        else:
            self._reaping = self._loop.create_task(self._reap())

    def _fail_start_if_unheard(self, status: int) -> None:
        if not self.started.done():
            self._fail_start(f"the shim of {self._program} ended with status {status} before the start")

    async def _reap(self) -> None:
        if not await asyncio.to_thread(reap, self._mark.__eq__, self._known):
            _log.error("processes could not be killed", mark=self._mark)
        self._finish()

    def _finish(self) -> None:
        # Unless the shim told: then the engine died with it, by the parent-death signal.
        self._report(Exit(code=None, signal=int(signal.SIGKILL)))
        try:
            self._on_gone()
        finally:  # whoever waits for the end must hear of it, though the state could not be written
            self.gone.set()


def _reason(stage: str, number: int, program: str, cwd: str) -> str:
    if stage == "cwd":
        return f"{program} cannot be started in {cwd}: {os.strerror(number)}"
    return f"{program} cannot be executed: {os.strerror(number)}"
