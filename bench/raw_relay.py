"""The floor for Python: bytes from a client to one engine and back, with nothing looked at.

Run as `python bench/raw_relay.py HOST:PORT`; prints its own address. Started by bench/request_path.py.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One end of a pair; what arrives is written to the other."""

    def __init__(self) -> None:
        self.other: asyncio.Transport | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        else:
            self.other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.close()


class Front(Side):
    """The client's end: connects to the engine first."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self.host, self.port = host, port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.joining = asyncio.get_running_loop().create_task(self._join())

    async def _join(self) -> None:
        _, back = await asyncio.get_running_loop().create_connection(Side, self.host, self.port)
        back.other, self.other = self.transport, back.transport
        self.other.writelines(self.early)
        self.early.clear()


async def main(upstream: str) -> None:
    host, _, port = upstream.rpartition(":")
    server = await asyncio.get_running_loop().create_server(lambda: Front(host, int(port)), "127.0.0.1", 0)
    name = server.sockets[0].getsockname()
    print(f"{name[0]}:{name[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
