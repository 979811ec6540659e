"""Models in several files that processes fetch at once, and that one was killed over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import closing
from hashlib import sha256
from pathlib import Path

from modelyard.store import Store
from modelyard.store.pace import Pace
from store.front import Front, front_of
from store.origins import Files, source_at, source_of
from store.test_sets import NAMES, beside, fetched, folder
from waiting import until

__all__ = ["folder"]

PROGRAM = """
import asyncio, sys
from contextlib import closing
from pathlib import Path
from modelyard.store import Store, Terms, transfer
from modelyard.store.pace import Pace
from store.origins import source_at, source_of
transfer._SAVE_EVERY, transfer.PIECE = 0.02, 100_000
async def main(url, root):
    with closing(Store(root, [source_at("http", url, root.parent, Pace(pauses=()))])) as store:
        file = await store.sets.fetch(source_of("http", url, sys.argv[3]), Terms(), "a test", lambda _: None)
        print(file.digest, flush=True)
asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


def begun(front: Front, root: Path) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, front.url, str(root), NAMES[0]],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])},
    )


def bytes_sent(front: Front, name: str) -> int:
    return sum(one.sent for one in front.parts if one.path.endswith(name))


async def test_a_kill_in_the_second_part(tmp_path: Path, folder: Path) -> None:
    """What has come is not fetched again."""
    files = Files({name: (folder / name).read_bytes() for name in NAMES})
    sizes = {name: len(content) for name, content in files.contents.items()}
    with front_of(files.web) as front:
        front.rate = sizes[NAMES[1]] / 2
        process = begun(front, tmp_path / "store")
        states = tmp_path / "store" / "partial"
        await until(lambda: bytes_sent(front, NAMES[1]) > sizes[NAMES[1]] / 2 and any(states.glob("*/state")))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        blobs = tmp_path / "store" / "blobs" / "sha256"
        assert [path.name for path in blobs.iterdir()] == [sha256(files.contents[NAMES[0]]).hexdigest()]
        assert not list((tmp_path / "store" / "sets").iterdir())
        front.rate, before = 0.0, len(front.asked)
        web = source_at("http", front.url, tmp_path, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [web])) as store:
            file = await fetched(store, source_of("http", front.url, NAMES[0]))
        assert [path.read_bytes() for path in beside(file)] == list(files.contents.values())
        again = [(one.path.rpartition("/")[2], one.range or (0, 0)) for one in front.asked[before:]]
        assert NAMES[0] not in dict(again)
        assert any(name == NAMES[1] and range[0] > sizes[name] / 4 for name, range in again)


async def test_two_processes_fetch_each_part_once(tmp_path: Path, folder: Path) -> None:
    files = Files({name: (folder / name).read_bytes() for name in NAMES})
    with front_of(files.web) as front:
        front.flowing.clear()
        processes = [begun(front, tmp_path / "store") for _ in range(2)]
        await until(lambda: front.busy)
        front.flowing.set()
        said = [(await asyncio.to_thread(process.communicate, timeout=30))[0] for process in processes]
        fetches = [one.path.rpartition("/")[2] for one in front.asked if one.range == (0, 100_000)]
    assert len(set(said)) == 1
    assert said[0].strip()
    assert sorted(fetches) == list(NAMES)
