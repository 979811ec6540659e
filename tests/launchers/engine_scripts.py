"""Small programs that behave like engines at their worst; each is the text of a Python script."""

from __future__ import annotations

import sys
from pathlib import Path

from modelyard.core.types import Address
from modelyard.engines.base import Command
from modelyard.launchers.base import Launch

# Waits for ever, ends on TERM.
PATIENT = "import time\nprint('up', flush=True)\ntime.sleep(600)\n"

# Ignores TERM, as do its children.
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(600)
"""

# Leaves a daemon behind: forks twice, the grandchild in a session of its own, output elsewhere.
DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        with open(sys.argv[1], 'w') as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1], sys.argv[1] + '.pid')
        time.sleep(600)
    os._exit(0)
os.wait()
print('up', flush=True)
time.sleep(600)
"""

# The same, and the daemon executes with an empty environment: its mark is lost.
UNMARKED_DAEMON = DAEMON.replace(
    "        time.sleep(600)\n    os._exit",
    "        os.execve('/bin/sleep', ['sleep', '600'], {})\n    os._exit",
)

# Every process forks the next one and ends: no pid lives longer than a moment.
HOT_POTATO = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
if os.fork():
    while True:
        signal.pause()
while True:
    if os.fork():
        os._exit(0)
"""

# Megabytes without a newline, lines of carriage returns, then a last word.
FLOOD = """
import sys, time
out = sys.stdout.buffer
out.write(b'first words\\n')
for _ in range(160):
    out.write(b'x' * 65536)
    out.write(b'progress\\r' * 8192)
out.write(b'\\nlast words\\n')
out.flush()
time.sleep(600)
"""


def script(folder: Path, text: str, *arguments: str) -> tuple[str, ...]:
    """The command line that runs `text`."""
    path = folder / f"engine-{abs(hash(text)):x}.py"
    path.write_text(text)
    return (sys.executable, "-I", "-S", str(path), *arguments)


def launch(instance: str, argv: tuple[str, ...], *, unix: bool = False, **environment: str) -> Launch:
    """A Launch of this command line at whatever address it is given."""

    def command(address: Address) -> Command:
        return Command(argv=argv)

    return Launch(instance=instance, command=command, unix=unix, environment=environment)
