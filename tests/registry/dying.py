"""A program that is killed: `python -m registry.dying URL register|migrate …`.

`register` registers models until then and prints the name of each when it is kept. `migrate FOLDER TEXT`
brings the schema up with the migrations of a folder, prints `there` at the first statement that holds the
text, and goes no further.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from modelyard.registry import Registry, schema
from registry.making import new_version

TESTS = Path(__file__).parents[1]


def start(url: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "registry.dying", url, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )


def kill(process: subprocess.Popen[str]) -> list[str]:
    """What it had printed beyond what was read."""
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    with process.stdout:
        rest = process.stdout.read().splitlines()
    assert process.wait(10) == -signal.SIGKILL
    return rest


async def _register(url: str) -> None:
    registry = Registry(url)
    for number in count():
        name = f"{os.getpid()}-{number}"
        version = new_version(name, "chat", pairs=(("en", "de"), ("de", "en")))
        await registry.register(
            name, version, who="ada", policy={"of": name}, aliases=[f"{name}-a", f"{name}-b"]
        )
        print(name, flush=True)


async def _migrate(url: str, folder: str, text: str) -> None:
    schema.MIGRATIONS = Path(folder)

    def stop(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if text in statement:
            print("there", flush=True)
            time.sleep(60)

    event.listen(Engine, "before_cursor_execute", stop)
    await Registry(url).open()


if __name__ == "__main__":
    address, what, *rest = sys.argv[1:]
    asyncio.run(_register(address) if what == "register" else _migrate(address, *rest))
