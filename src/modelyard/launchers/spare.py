"""A shim that waits for its order, started ahead of the engine that it will run.

Starting an interpreter takes many milliseconds, and a swap has them to spare only while the leaving engine
ends. Owned by `launchers.local`, which keeps at most one; given to `launchers.child`, which owns it from its
order on. A spare runs nothing, and it ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelyard.launchers import shim


class Spare:
    """A started shim. Making one raises OSError when it cannot be started, and leaves nothing behind.

    `environment` is the shim's own; the engine gets its environment with the order.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # These all succeed or leave nothing.
        with contextlib.ExitStack() as undo:
            self.control, theirs = socket.socketpair()
            undo.callback(self.control.close)
            # In memory, and not on the command line: an environment may hold secrets, and any size fits.
            self._order = os.memfd_create("order")
            undo.callback(os.close, self._order)
            with theirs:
                self.process = _spawn(theirs.fileno(), self._order, environment)
            undo.callback(self.process.wait)
            undo.callback(self.process.kill)
            self.pidfd = os.pidfd_open(self.process.pid)
            undo.pop_all()
        self.control.setblocking(False)

    @property
    def alive(self) -> bool:
        """Whether it can still be given an order."""
        return self.process.poll() is None

    def run(self, order: bytes) -> None:
        """Have it execute what `order` (below) made. Raises OSError when that cannot be written; then the
        spare is gone."""
        try:
            with os.fdopen(self._order, "wb") as file:
                file.write(order)
        except OSError:
            self._end()
            raise
        with contextlib.suppress(OSError):  # it has ended: whoever watches it is told so
            self.control.send(shim.GO)

    def discard(self) -> None:
        """End a spare that was given no order."""
        os.close(self._order)
        self._end()

    def _end(self) -> None:
        self.control.close()
        os.close(self.pidfd)
        self.process.kill()  # it has nothing to clean up
        self.process.wait()


def order(argv: Sequence[str], environment: Mapping[str, str], cwd: str, log: Path, log_cap: int) -> bytes:
    """What a shim has to run. Raises ValueError for what no program can be given."""
    if any(not name or "=" in name for name in environment):
        raise ValueError("illegal environment variable name")
    pairs = (part for pair in environment.items() for part in pair)
    fields = [str(log), str(log_cap), cwd, str(len(argv)), *argv, *pairs]
    if any("\0" in field for field in fields):
        raise ValueError("embedded null byte")
    return b"".join(os.fsencode(field) + b"\0" for field in fields)


def _spawn(control: int, order: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Half a millisecond (vfork), so it is done on the loop: nothing can be cancelled half-way.
    return subprocess.Popen(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-I", "-S", shim.__file__, str(control), str(order)],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(control, order),
        start_new_session=True,
    )
