"""The answer to one generation, whole or as a stream, in OpenAI's shapes.

Called by `api` while it holds a slot.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from modelyard.servers.plain_http import Exchange
from modelyard.servers.transformers.asks import Ask
from modelyard.servers.transformers.generation import Job, Words
from modelyard.servers.transformers.text import Text


class Answer:
    """`begun` is true once bytes of it were sent."""

    def __init__(self, model: str, ask: Ask, job: Job, words: Words) -> None:
        self.begun = False
        self._model = model
        self._ask = ask
        self._job = job
        self._text = Text(words.decode, job.prompt, ask.stops)
        self._generated = 0
        self._ended = False  # by a token of `job.ends`
        self._id = ("chatcmpl-" if ask.chat else "cmpl-") + os.urandom(12).hex()
        self._created = int(time.time())

    async def send(self, exchange: Exchange, tokens: AsyncGenerator[int]) -> None:
        """Send all of it. Raises what `tokens` raises."""
        async with aclosing(tokens):
            await (self._stream if self._ask.stream else self._whole)(exchange, self._texts(tokens))

    async def break_off(self, exchange: Exchange, why: str) -> None:
        """End a stream that has begun with an error."""
        await exchange.write(_sse({"error": {"message": why, "type": "server_error", "code": 500}}))
        exchange.end()

    async def _texts(self, tokens: AsyncGenerator[int]) -> AsyncGenerator[str]:
        async for token in tokens:
            self._generated += 1
            if token in self._job.ends:
                self._ended = True
                continue
            if piece := self._text.add(token):
                yield piece
            if self._text.stopped:
                return
        if piece := self._text.end():
            yield piece

    async def _whole(self, exchange: Exchange, texts: AsyncGenerator[str]) -> None:
        text = "".join([piece async for piece in texts])
        choice: dict[str, object] = {"index": 0, "finish_reason": self._reason}
        if self._ask.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._ask.chat else "text_completion"
        exchange.answer(200, self._object(kind, [choice]) | {"usage": self._usage()})

    async def _stream(self, exchange: Exchange, texts: AsyncGenerator[str]) -> None:
        # Nothing is sent before the first text, so that what breaks off until then has a status.
        async for piece in texts:
            await self._begin(exchange)
            await exchange.write(self._event({"content": piece} if self._ask.chat else piece))
        await self._begin(exchange)
        await exchange.write(self._event({} if self._ask.chat else "", self._reason))
        if self._ask.usage:
            await exchange.write(_sse(self._object(self._chunk, []) | {"usage": self._usage()}))
        await exchange.write(b"data: [DONE]\n\n")
        exchange.end()

    async def _begin(self, exchange: Exchange) -> None:
        if self.begun:
            return
        self.begun = True
        exchange.begin(200, "text/event-stream")
        if self._ask.chat:
            await exchange.write(self._event({"role": "assistant", "content": ""}))

    @property
    def _reason(self) -> str:
        return "stop" if self._ended or self._text.stopped else "length"

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self._ask.chat else "text_completion"

    def _event(self, content: object, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta" if self._ask.chat else "text": content, "finish_reason": reason}
        return _sse(self._object(self._chunk, [choice]))

    def _object(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return {**head, "choices": choices}

    def _usage(self) -> dict[str, int]:
        prompt = len(self._job.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._generated,
            "total_tokens": prompt + self._generated,
        }


def _sse(body: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
