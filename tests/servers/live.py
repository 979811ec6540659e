"""An engine process for tests: a plain child process on a Unix socket, and an HTTP client to it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from waiting import until

DEADLINE = 30.0


class Live:
    """A running engine: its `process`, a `client` to it, and the file that its output goes to."""

    def __init__(self, process: subprocess.Popen[bytes], client: httpx.AsyncClient, log: Path) -> None:
        self.process = process
        self.client = client
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def healthy(self, path: str = "/health") -> None:
        """Wait for a 200 on the health path."""

        async def answers() -> bool:
            assert self.process.poll() is None, f"exit {self.process.returncode}: {self.log[-2000:]}"
            try:
                return (await self.client.get(path)).status_code == 200
            except httpx.TransportError:
                return False

        await until(answers)

    async def exited(self) -> int:
        """Wait for the end of the process; its return code."""
        return await asyncio.to_thread(self.process.wait, DEADLINE)


@asynccontextmanager
async def running(
    argv: Callable[[str], Sequence[str]], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Live]:
    """Start `argv(socket path)`; the process is killed at the end if it still lives."""
    # A folder of its own: pytest's paths can be longer than a socket's name may be.
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        socket, log = str(Path(folder) / "engine.sock"), Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                argv(socket),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )
        # Servers close kept connections when they like: here each call has its own.
        transport = httpx.AsyncHTTPTransport(uds=socket, limits=httpx.Limits(max_keepalive_connections=0))
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://engine", timeout=DEADLINE
            ) as c:
                yield Live(process, c, log)
        finally:
            process.kill()
            process.wait(DEADLINE)


@asynccontextmanager
async def fake(
    *options: str, model: str = "m", environment: Mapping[str, str] | None = None
) -> AsyncIterator[Live]:
    """A fake engine with these command line options."""

    def argv(socket: str) -> list[str]:
        base = [sys.executable, "-m", "modelyard.servers.fake", "--address", f"unix:{socket}"]
        return [*base, "--model", model, *options]

    async with running(argv, environment) as live:
        yield live
