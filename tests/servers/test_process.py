"""How our own engine processes end when Python has no memory: what it was about to do is undone, and whoever
waits for that would wait for ever."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence

import pytest

from modelyard.servers.gathering import Gathering
from waiting import until

SERVER = """
import asyncio, sys
from modelyard.servers import process

class Api:
    model = None
    async def handle(self, exchange):
        raise MemoryError

def fail():
    raise MemoryError

def ask():
    import socket, threading
    def connect():
        with socket.create_connection(("127.0.0.1", PORT)) as client:
            client.sendall(b"GET / HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n")
            client.recv(1)
    threading.Thread(target=connect, daemon=True).start()

async def main():
    asyncio.get_running_loop().call_later(0.1, WHAT)
    return await process.serve(f"127.0.0.1:{PORT}", "a model", lambda failed: Api(), lambda: 1)

import socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]
sys.exit(asyncio.run(main()))
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("what", ["fail", "ask"])
def test_a_process_whose_python_has_no_memory_ends_and_says_so(what: str) -> None:
    ran = run(SERVER.replace("WHAT", what))
    assert ran.returncode == 1
    assert "error: the model has failed: out of memory" in ran.stderr
    assert "Traceback" in ran.stderr


def test_a_model_that_cannot_be_taken_ends_the_process() -> None:
    taking = """    def __setattr__(self, name, value):
        raise IndexError("it has no pairs")
"""
    program = SERVER.replace("    model = None\n", f"    model = None\n{taking}").replace("WHAT", "print")
    ran = run(program)
    assert ran.returncode == 1
    assert "error: failed to load model: IndexError: it has no pairs" in ran.stderr


async def test_a_thread_that_is_given_nothing_any_more_is_told() -> None:
    def bound() -> int:
        raise MemoryError

    def compute(items: Sequence[str], lane: int) -> list[str]:
        return [*items]

    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context.get("exception")))
    asking = asyncio.create_task(Gathering[str, str](compute, bound, max_wait=0.0).ask(["a"]))
    await until(lambda: [type(one) for one in told] == [MemoryError])
    asking.cancel()
    await asyncio.wait([asking])
