"""Our own server over the Transformers library, without the library: embeddings, and texts as tokens."""

from __future__ import annotations

import asyncio
import threading

from modelyard.servers.transformers.generation import Model
from servers.made_up_model import Bed, Letters, Measurer, Speaker, served
from waiting import until


async def test_embeddings_are_bounded_and_end_with_their_client() -> None:
    async with served(Speaker()) as server:
        measurer = Measurer()
        server.api.model = Model(Letters(), Bed(), embedder=measurer)
        many = await server.post("/v1/embeddings", input=["a"] * 2049)
        assert (many.status_code, many.json()["error"]["param"]) == (400, "input")
        strange = await server.post("/v1/embeddings", input=["a", "\x01"])
        assert (strange.status_code, "refuses this text" in strange.text) == (400, True)
        asking = asyncio.create_task(server.post("/v1/embeddings", input=["a"] * 99))
        await until(lambda: measurer.begun)
        asking.cancel()
        await asyncio.wait([asking])

        async def idle() -> bool:
            measurer.step.release()
            return (await server.stats())["processing"] == 0

        await until(idle)
        assert measurer.left
        for _ in range(2):
            measurer.step.release()
        answer = (await server.post("/v1/embeddings", input=["a" * 9, [1, 2]])).json()
        assert [one["embedding"] for one in answer["data"]] == [[9.0], [2.0]]


async def test_other_requests_are_answered_while_a_long_text_is_read() -> None:
    class Slow(Letters):
        read = threading.Event()
        reading = 0

        def encode(self, text: str, special: bool = True) -> list[int]:
            self.reading += 1
            assert self.read.wait(10)
            return super().encode(text, special)

    async with served(Speaker()) as server:
        slow = Slow()
        measurer = Measurer()
        server.api.model = Model(slow, Bed(), embedder=measurer)
        reading = [
            asyncio.create_task(server.post("/tokenize", content="ab")),
            asyncio.create_task(server.post("/v1/embeddings", input="ab")),
        ]
        await until(lambda: slow.reading == 2)
        assert (await server.post("/sleep")).status_code == 200
        slow.read.set()
        tokens, vectors = await asyncio.gather(*reading)
        assert (tokens.status_code, vectors.status_code) == (200, 503)
        assert not measurer.begun
