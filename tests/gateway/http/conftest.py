"""A server with the test lanes, on a free port or a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop

from gateway.http.lanes import Lanes, Serve, Served, admit, no_app
from modelyard.core.types import Address
from modelyard.gateway.http import Limits, Server


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: their transports buffer, pause and close differently."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server: `serve(app=…, unix=…, **limits)`."""
    async with AsyncExitStack() as stack:

        async def start(app: Any = no_app, unix: str = "", **limits: Any) -> Served:
            lanes = Lanes()
            server = Server(lanes.handler_for, app, Limits(**limits), admit=admit)
            await server.start(Address(path=unix) if unix else Address())
            stack.push_async_callback(server.close_now)
            return Served(server, lanes)

        yield start
