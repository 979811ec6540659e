"""Folders that processes fetch at once, and that one was killed over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from modelyard.store import HubFiles, Store
from store.hub_server import Hub
from store.model_folder import NEEDED, WEIGHTS
from store.test_folders import SOURCE, blobs, content, environ, fetched, hub
from waiting import until

__all__ = ["environ", "hub"]

PROGRAM = """
import asyncio, sys
from contextlib import closing
from pathlib import Path
from modelyard.store import HubFiles, Store, Terms
async def main(root, source):
    with closing(Store(root, [HubFiles()])) as store:
        file = await store.sets.fetch(source, Terms(), "a test", lambda _: None)
        print(file.path, flush=True)
asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def begun(root: Path, environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), SOURCE],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


async def test_a_kill_in_the_second_file_of_weights(
    tmp_path: Path, hub: Hub, environ: dict[str, str]
) -> None:
    """The folder is not there, and what has come is not fetched again."""
    root = tmp_path / "store"
    hub.stalls = WEIGHTS[1]
    hub.flowing.clear()
    process = begun(root, environ)
    await until(hub.stalled.is_set)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert not list((root / "sets").iterdir())
    assert len(blobs(root)) == len(NEEDED), "one is missing, and the list is there"
    hub.flowing.set()
    hub.asked.clear()
    with closing(Store(root, [HubFiles(environ)])) as store:
        assert content((await fetched(store)).path) == NEEDED
    assert {one.path.rpartition("/")[2] for one in hub.requests("GET", cdn=True)} == {WEIGHTS[1]}


async def test_two_processes_fetch_each_file_once(tmp_path: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.flowing.clear()
    processes = [begun(tmp_path / "store", environ) for _ in range(2)]
    await until(hub.stalled.is_set)
    hub.flowing.set()
    said = [(await asyncio.to_thread(process.communicate, timeout=60))[0] for process in processes]
    assert len(set(said)) == 1
    assert content(Path(said[0].strip())) == NEEDED
    fetches = [one.path.rpartition("/")[2] for one in hub.requests("GET", cdn=True)]
    assert sorted(fetches) == sorted(WEIGHTS)
