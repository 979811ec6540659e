"""A client that sends exact bytes over a real socket and reads answers without guessing where they end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import cast

from modelyard.core.types import Address


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """One connection. Every wait ends after five seconds."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def __aenter__(self) -> RawClient:
        if self._address.path:
            self.reader, self.writer = await asyncio.open_unix_connection(self._address.path)
        else:
            self.reader, self.writer = await asyncio.open_connection(self._address.host, self._address.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def read_nothing(self) -> None:
        """Leave everything in the kernel's buffers until `read_on`."""
        self._transport().pause_reading()

    def read_on(self) -> None:
        self._transport().resume_reading()

    def _transport(self) -> asyncio.ReadTransport:
        return cast(asyncio.ReadTransport, self.writer.transport)

    async def line(self) -> bytes:
        return await asyncio.wait_for(self.reader.readline(), 5)

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), 5)

    async def head(self) -> Answer:
        status = int((await self.line()).split(b" ")[1])
        headers = {}
        while line := (await self.line()).rstrip():
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return Answer(status, headers, b"")

    async def chunk(self) -> bytes:
        size = int(await self.line(), 16)
        data = await self.exactly(size)
        assert await self.exactly(2) == b"\r\n"
        return data

    async def answer(self) -> Answer:
        """One whole answer (not of HEAD), by its own framing."""
        found = await self.head()
        if found.headers.get("transfer-encoding") == "chunked":
            while piece := await self.chunk():
                found.body += piece
        elif "content-length" in found.headers:
            found.body = await self.exactly(int(found.headers["content-length"]))
        return found

    async def rest(self) -> bytes:
        """Everything until the server closes; a reset counts as the end."""
        try:
            return await asyncio.wait_for(self.reader.read(), 5)
        except ConnectionResetError:
            return b""
