"""Our own server over the Transformers library with a model that is made up, for tests: `served`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx

from modelyard.servers import plain_http
from modelyard.servers.transformers.api import Api
from modelyard.servers.transformers.asks import Sampling
from modelyard.servers.transformers.generation import Job, Model
from modelyard.servers.transformers.parameters import Parameters

END = 0  # the token that ends a text


class Letters:
    """Tokens are code points."""

    ends = frozenset({END})
    defaults = Sampling(0.7, 50, 0.9)
    chats = True
    vocabulary = 256

    def encode(self, text: str, special: bool = True) -> list[int]:
        if "\x01" in text:
            raise ValueError("the tokenizer refuses this text")
        return list(map(ord, text))

    def chat(self, messages: Sequence[Mapping[str, object]], more: Mapping[str, object]) -> list[int]:
        if messages[0]["role"] == "nobody":
            raise ValueError("there is no role nobody")
        return self.encode("".join(str(message["content"]) for message in messages))

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        return "".join(map(chr, tokens))


class Speaker:
    """Says `words` again and again, a token when it is told to; what it was asked is in `jobs`."""

    def __init__(self, words: str = "abc", *, at_once: bool = True) -> None:
        self.jobs: list[Job] = []
        self.cancelled: list[Job] = []
        self.closed = False
        self._words = words
        self._at_once = at_once

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        if self._at_once:
            self.say(job, job.limit)

    def say(self, job: Job, count: int) -> None:
        tokens = [ord(self._words[number % len(self._words)]) for number in range(count)]
        if END in tokens and END in job.ends:
            tokens = tokens[: tokens.index(END) + 1]
        job.said.put_nowait(tokens)
        if count >= job.limit or END in tokens:
            job.said.put_nowait(None)

    def cancel(self, job: Job) -> None:
        self.cancelled.append(job)
        job.said.put_nowait(None)

    def counts(self) -> Mapping[str, float]:
        return {"kv_use": 0.5}

    def open(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Measurer:
    """Embeds as Letters counts, in steps that it is told to make."""

    def __init__(self) -> None:
        self.step = asyncio.Semaphore(0)
        self.begun = self.left = False

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Sequence[Sequence[float]]:
        for _ in inputs:
            self.begun = True
            try:
                await self.step.acquire()
            except asyncio.CancelledError:
                self.left = True
                raise
        return [[float(len(one))] for one in inputs]

    def counts(self) -> Mapping[str, float]:
        return {"batch": 3}


class Bed:
    level = "file"
    full = False

    def sleep(self) -> tuple[int, float]:
        if self.full:
            raise OSError("no space left")
        return 100, 0.5

    def wake(self) -> tuple[int, float]:
        if self.full:
            raise RuntimeError("out of memory")
        return 100, 0.1


class Server:
    def __init__(self, api: Api, client: httpx.AsyncClient, speaker: Speaker, bed: Bed) -> None:
        self.api, self.client, self.speaker, self.bed = api, client, speaker, bed
        self.failed: list[str] = []

    async def post(self, path: str, **body: object) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def stats(self) -> dict[str, float]:
        return (await self.client.get("/stats")).json()  # type: ignore[no-any-return]


@asynccontextmanager
async def served(speaker: Speaker, slots: int = 2, context: int = 64) -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        socket = f"{folder}/s"
        failed: list[str] = []
        bed = Bed()
        api = Api(Parameters(f"unix:{socket}", "m", folder, context, slots), failed.append)
        api.model = Model(Letters(), bed, generator=speaker)
        listening = await plain_http.listen(f"unix:{socket}", api.handle, 60, 1000)
        transport = httpx.AsyncHTTPTransport(uds=socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://m", timeout=10) as client:
            server = Server(api, client, speaker, bed)
            server.failed = failed
            yield server
        listening.close()
