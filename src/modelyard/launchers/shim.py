"""The small process between Modelyard and one engine: no engine outlives its parent, no output fills a disk.

Started by `launchers.spare` as `python -I -S shim.py CONTROL ORDER` in a session of its own, often before it
is known what to run. ORDER is a file that the parent fills (`launchers.spare.order`): log, its cap in bytes,
working directory, number of arguments, the arguments, the environment, each ended by a NUL. Then the shim
executes the engine, copies its output to a file of bounded size, reports how it ended, and ends only when
every descendant is gone. CONTROL is a stream socket:

    from the parent   GO, one byte      the order is complete: execute it
                      `stop SECONDS`    TERM the tree, KILL what is left after SECONDS (0: KILL at once)
                      end of stream     the parent is gone: the same, with a short grace
    to the parent     `started PID`, or `failed STAGE ERRNO` (STAGE is `cwd` or `exec`)
                      `exit code N`, or `exit signal N`, when the engine itself has ended

It is a child subreaper, so daemons that detach themselves stay in its tree. It imports little (`signal`,
`json` or `subprocess` would double the time of a start) and nothing of this package: isolated mode does not
see it.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
import time

SIGKILL, SIGPIPE, SIGTERM, SIGXFSZ = 9, 13, 15, 25
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

ORPHAN_GRACE = 2.0  # seconds between TERM and KILL when the parent is gone
REST_GRACE = 0.5  # what the rest of the tree gets once the engine itself has ended
IDLE_POLL = 1.0  # reaps orphans that ended meanwhile
STOPPING_POLL = 0.005
CHUNK = 64 * 1024
FINAL_CHUNKS = 64  # more than a pipe holds
GO = b"!"
MARK = b"\n[... output left out here ...]\n"


def read_stat(pid: int) -> tuple[str, int, int, int] | None:
    """State, parent, process group and start time (ticks since boot) of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name stands in parentheses and may itself hold spaces and parentheses.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[19])


def descendants(root: int) -> dict[int, int]:
    """The live descendants of `root`, without zombies: process group by pid. One pass over /proc."""
    children: dict[int, list[int]] = {}
    groups: dict[int, int] = {}
    zombies = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or (stat := read_stat(int(name))) is None:
            continue
        state, parent, group, _ = stat
        pid = int(name)
        children.setdefault(parent, []).append(pid)
        groups[pid] = group
        if state in "ZX":
            zombies.add(pid)
    found: dict[int, int] = {}
    todo = [root]
    while todo:
        for pid in children.get(todo.pop(), ()):
            # A zombie leader may still have threads' children below it.
            todo.append(pid)
            if pid not in zombies:
                found[pid] = groups[pid]
    return found


class Log:
    """A file of at most `cap` bytes that keeps the head and the tail of what was written.

    When it is full it is replaced, in one step for whoever reads it, by its first quarter, a mark and the
    last part of the rest. A full disk loses output and nothing else.
    """

    def __init__(self, path: bytes, cap: int) -> None:
        self.path = path
        self.cap = max(cap, 4 * len(MARK))
        self.chunk = min(CHUNK, self.cap // 4)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append at most `chunk` bytes."""
        try:
            if self._size + len(data) > self.cap:
                self._fold()
            self._size += os.write(self._fd, data)
        except OSError:
            return

    def fileno(self) -> int:
        """The file as it is now; the next fold replaces it."""
        return self._fd

    def _fold(self) -> None:
        head = os.pread(self._fd, self.cap // 4, 0)
        keep = self.cap // 4
        tail = os.pread(self._fd, keep, self._size - keep)
        fresh = os.open(self.path + b".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            for part in (head, MARK, tail):
                os.write(fresh, part)
            os.replace(self.path + b".new", self.path)
        except OSError:
            os.close(fresh)
            raise
        os.close(self._fd)
        self._fd = fresh
        self._size = os.fstat(fresh).st_size


class Shim:
    """The life of one engine, from its execution until its tree is empty."""

    def __init__(self, control: int, log: Log, engine: int, output: int) -> None:
        self._control = control
        self._log = log
        self._engine = engine
        self._output = output
        self._engine_fd = os.pidfd_open(engine)
        self._received = b""
        self._engine_is_ours = True  # until it was waited for: then its pid may be anybody's
        self._kill_at: float | None = None  # None while nobody asked for a stop
        self._poll = select.poll()
        for fd in (control, output, self._engine_fd):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Return when the engine and all its descendants are gone."""
        while not self._reap():
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._signal(SIGKILL)
            pause = IDLE_POLL if self._kill_at is None else STOPPING_POLL
            for fd, _ in self._poll.poll(pause * 1000):
                if fd == self._control:
                    self._read_control()
                elif fd != self._output or not self._copy():
                    self._poll.unregister(fd)  # the engine has ended, or nobody can write any more
        for _ in range(FINAL_CHUNKS):
            if not self._copy():
                break

    def _reap(self) -> bool:
        """Collect the dead; True when no child is left. As a subreaper, no child means no descendant."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._engine:
                self._engine_is_ours = False
                code = os.waitstatus_to_exitcode(status)
                report(self._control, f"exit code {code}" if code >= 0 else f"exit signal {-code}")
                self._stop(REST_GRACE)

    def _stop(self, grace: float) -> None:
        if self._kill_at is None and grace > 0:
            self._signal(SIGTERM)
        kill_at = time.monotonic() + grace
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def _signal(self, number: int) -> None:
        """Signal every group of the tree once. A group is signalled as a whole by the kernel, so that one
        that forks faster than we can look is reached too. The engine's own goes first: on a machine with
        many processes the look takes longer than some engines need to end."""
        own = {self._engine} if self._engine_is_ours else set()
        _signal_groups(own, number)
        _signal_groups(set(descendants(os.getpid()).values()) - own - {os.getpgrp()}, number)

    def _read_control(self) -> None:
        try:
            data = os.read(self._control, 4096)
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(self._control)
            self._stop(ORPHAN_GRACE)
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._stop(float(line.removeprefix(b"stop ")))

    def _copy(self) -> bool:
        """Copy one chunk of output; False when there is none now, or never again."""
        try:
            data = os.read(self._output, self._log.chunk)
        except BlockingIOError:
            return False
        self._log.write(data)
        return bool(data)


def _signal_groups(groups: set[int], number: int) -> None:
    for group in groups:
        try:
            os.killpg(group, number)
        except OSError:
            continue


def report(control: int, line: str) -> None:
    """Tell the parent; it may be gone."""
    try:
        os.write(control, line.encode() + b"\n")
    except OSError:
        return


def execute(
    libc: ctypes.CDLL, cwd: bytes, command: list[bytes], environment: dict[bytes, bytes], output: int
) -> tuple[int, str]:
    """Execute the engine in a session of its own. Returns its pid and why it failed (empty: it runs)."""
    shim = os.getpid()
    failure, failure_end = os.pipe()
    engine = os.fork()
    if engine == 0:
        stage = "exec"
        try:
            # The shim has one thread, so the parent-death signal means the death of the shim.
            libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
            if os.getppid() != shim:
                os._exit(127)
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            for number in (SIGPIPE, SIGXFSZ):
                libc.signal(number, None)  # Python ignores these two; an ignored signal survives exec
            if cwd:
                stage = "cwd"
                os.chdir(cwd)
            stage = "exec"
            os.execvpe(command[0], command, environment)  # noqa: S606 - an engine's argument list, never a shell line
        except (OSError, ValueError) as error:
            os.write(failure_end, f"{stage} {getattr(error, 'errno', 0)}".encode())
        finally:
            os._exit(127)
    os.close(failure_end)
    reason = os.read(failure, 64).decode()
    os.close(failure)
    return engine, reason


def read_order(file: int) -> tuple[bytes, int, bytes, list[bytes], dict[bytes, bytes]]:
    """Log, its cap, working directory, command line and environment."""
    fields = os.pread(file, os.fstat(file).st_size, 0).split(b"\0")[:-1]
    log, cap, cwd, count = fields[:4]
    first = 4 + int(count)
    environment = dict(zip(fields[first::2], fields[first + 1 :: 2]))  # noqa: B905 - always pairs
    return log, int(cap), cwd, fields[4:first], environment


def main(arguments: list[str]) -> int:
    """Wait for the order, run one engine to its end. The exit status is 0 when nothing of it is left."""
    control, order = int(arguments[0]), int(arguments[1])
    os.set_inheritable(control, False)
    os.set_inheritable(order, False)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.read(control, len(GO)) != GO:
        return 0  # it was not needed: the parent has closed, or is gone
    path, cap, cwd, command, environment = read_order(order)
    os.close(order)
    log = Log(path, cap)
    os.dup2(log.fileno(), 2)  # what goes wrong here is read there
    output, output_end = os.pipe()
    engine, reason = execute(libc, cwd, command, environment, output_end)
    os.close(output_end)
    os.set_blocking(output, False)
    if reason:
        os.waitpid(engine, 0)
        report(control, f"failed {reason}")
        return 0
    report(control, f"started {engine}")
    Shim(control, log, engine, output).run()
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # nothing is buffered, and an orderly end takes milliseconds
