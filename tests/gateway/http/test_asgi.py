"""A FastAPI application behind the bridge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from gateway.http.lanes import Serve


class Thing(BaseModel):
    name: str


def make_app(gone: asyncio.Event) -> FastAPI:
    app = FastAPI()

    @app.post("/things/{number}")
    async def thing(number: int, body: Thing, q: str = "") -> dict[str, object]:
        return {"number": number, "name": body.name, "q": q}

    @app.get("/who")
    async def who(request: Request) -> dict[str, object]:
        return {"client": bool(request.client and request.client.port), "url": str(request.url)}

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def produce() -> AsyncIterator[bytes]:
            try:
                yield b"data: 1\n\n"
                await asyncio.Event().wait()
            finally:
                gone.set()

        return StreamingResponse(produce(), media_type="text/event-stream")

    @app.get("/count")
    async def count() -> StreamingResponse:
        async def produce() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"%d" % number

        return StreamingResponse(produce())

    @app.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError

    return app


async def test_fastapi_behind_the_bridge(serve: Serve) -> None:
    bench = await serve(make_app(asyncio.Event()), body=1000)
    base = f"http://{bench.server.address}"
    async with httpx.AsyncClient(base_url=base, timeout=5) as client:
        answer = await client.post("/things/7?q=%C3%A9", json={"name": "a"})
        assert (answer.status_code, answer.json()) == (200, {"number": 7, "name": "a", "q": "é"})
        assert (await client.post("/things/7", json={})).status_code == 422
        assert (await client.get("/who")).json() == {"client": True, "url": f"{base}/who"}
        counted = await client.get("/count")
        assert (counted.text, counted.headers["transfer-encoding"]) == ("012", "chunked")
        assert (await client.get("/nowhere")).status_code == 404
        head = await client.head("/openapi.json")
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.get("/openapi.json")).json()["openapi"]
        large = await client.post("/things/7", json={"name": "a" * 1000})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
        failed = await client.get("/fails")
        assert failed.status_code == 500


async def test_event_stream_ends_when_its_client_leaves(serve: Serve) -> None:
    gone = asyncio.Event()
    bench = await serve(make_app(gone))
    async with bench.client() as client:
        client.send(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await client.head()).headers["content-type"].startswith("text/event-stream")
        assert await client.chunk() == b"data: 1\n\n"
        assert not gone.is_set()
    await asyncio.wait_for(gone.wait(), 5)
