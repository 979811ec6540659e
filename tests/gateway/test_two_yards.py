"""Two servers, each of which names the other as the one that translates: no text goes in a loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.live_yard import LiveYard, live_yard
from gateway.translation.translators import refused, translator

ASKED = {"q": "one", "source": "en", "target": "fr"}
WITHIN = 5.0  # seconds


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@asynccontextmanager
async def two(
    engine: str, more: Mapping[str, Any] | None = None, **parameters: Any
) -> AsyncIterator[LiveYard]:
    """The first of them; its model `there` is at the second, whose model `back` is at the first. The second
    has some `more`."""
    ports = free_port(), free_port()

    def at(port: int) -> dict[str, Any]:
        url = {"url": f"http://127.0.0.1:{port}", **parameters}
        return {"engine": engine, "slots": 2, "pairs": ["en-fr"], "parameters": url}

    def server(port: int) -> dict[str, Any]:
        return {"unix": None, "port": port}

    async with (
        live_yard({"there": at(ports[1])}, server=server(ports[0])) as first,
        live_yard({"back": at(ports[0]), **(more or {})}, server=server(ports[1])),
    ):
        first.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}", timeout=60.0)
        yield first


@pytest.mark.parametrize("engine", ["openai", "libretranslate"])
@pytest.mark.parametrize("parameters", [{}, {"generate": False}])
async def test_the_first_says_who_would_send_it_back(engine: str, parameters: dict[str, Any]) -> None:
    async with two(engine, **parameters) as first, asyncio.timeout(WITHIN):
        answer = await first.http.post("/translate", json=ASKED)
        code = "engine_refused" if parameters else "cannot_load"
        assert refused(answer)[:2] == (502 if parameters else 503, code)
        said = answer.json()["error"]
        assert "English (en) to French (fr) is translated here only at another server, by back" in said
        assert "{" not in said
        if engine == "openai":
            assert "http://127.0.0.1:" in said
            assert "in a loop" in said


async def test_what_the_second_has_itself_it_translates() -> None:
    async with two("openai", {"own": translator("en-fr")}) as first, asyncio.timeout(WITHIN):
        answer = await first.http.post("/translate", json=ASKED)
        assert answer.json()["translatedText"] == "[fr] one"
