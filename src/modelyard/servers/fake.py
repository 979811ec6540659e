"""The fake engine: a real process that speaks llama.cpp's HTTP, answers at once, and fails on order.

    python -m modelyard.servers.fake --address unix:/p|host:port --model NAME [options]

Started by the launcher for models of engine `fake` (tests, demos, trying out a configuration). Its options
are the fields of `fake_script.Script`; a request's body field `fake` (`fake_script.Order`) tells it to fail
once. It really takes the memory it is told to take, so nothing above it has to pretend. Standard library
and httptools only: it has to be up in well under 100 ms.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from modelyard.servers import fake_memory, plain_http
from modelyard.servers.fake_api import Api
from modelyard.servers.fake_script import Script, parse
from modelyard.servers.fake_text import chat_prompt, expected_text

__all__ = ["chat_prompt", "expected_text", "main"]


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT. The exit code is the script's when it says so, else 0."""
    address, model, script = parse(argv)
    if script.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script.fork_grandchild:
        _leave_a_grandchild()
    held = fake_memory.Held()
    try:
        return asyncio.run(_serve(address, model, script, held))
    finally:
        held.drop()
        if address.startswith("unix:"):
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)


async def _serve(address: str, model: str, script: Script, held: fake_memory.Held) -> int:
    api = Api(model, script, Random(script.seed), held)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    if not script.ignore_sigterm:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        server = await plain_http.listen(address, api.handle, script.keep_alive, script.keep_alive_requests)
    except OSError as error:
        _log(f"couldn't bind to {address}: {error}")
        return 1
    _log(f"listening on {address}, loading {model}")
    stopping = loop.create_task(stop.wait())
    try:
        code = await _load(script, held, stopping)
        if code is not None:
            return code
        api.loaded = True
        _log("model loaded")
        await stopping
        return 0
    finally:
        stopping.cancel()
        server.close()


async def _load(script: Script, held: fake_memory.Held, stopping: asyncio.Task[bool]) -> int | None:
    """Take the memory, then the time. The exit code when the process has to end, else None."""
    start = time.monotonic()
    if script.flood_output:
        await asyncio.to_thread(_flood, script.flood_output)
    if script.oom_at_load:
        _log("error: unable to allocate buffer: out of memory")
        return 1
    try:
        await asyncio.to_thread(fake_memory.take, script.memory, fake_memory.pools(), held)
    except fake_memory.OutOfMemory as error:
        _log(f"error: unable to allocate buffer: out of memory ({error})")
        return 1
    except ValueError as error:
        _log(f"error: invalid argument: {error}")
        return 2
    await asyncio.wait({stopping}, timeout=max(script.load_time - (time.monotonic() - start), 0))
    if stopping.done():
        return 0
    if script.exit_code >= 0:
        _log(script.exit_log)
        return script.exit_code
    return None


def _flood(size: int) -> None:
    piece = b"." * (1 << 16)
    for start in range(0, size, len(piece)):
        sys.stdout.buffer.write(piece[: size - start])
    sys.stdout.buffer.flush()


def _leave_a_grandchild() -> None:
    """A process in a session of its own that sleeps for ever, with nothing of ours open."""
    subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import signal\nwhile True: signal.pause()"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
