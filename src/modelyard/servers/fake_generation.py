"""One generation of the fake engine: its tokens, in time, whole or as a stream, or broken off on order.

Called by `servers.fake_api` while it holds a slot. It looks at the client once per token.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

from modelyard.servers import fake_text
from modelyard.servers.fake_script import Script
from modelyard.servers.plain_http import Exchange


@dataclass
class Generation:
    """`limit` tokens after `prompt`; `cut` says that a limit ends them (finish_reason `length`)."""

    model: str
    prompt: str
    prompt_tokens: int
    limit: int
    cut: bool
    chat: bool
    usage: bool
    script: Script
    generated: int = 0
    name: str = field(default_factory=lambda: os.urandom(12).hex())
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, exchange: Exchange) -> None:
        """Answer in one piece."""
        text = "".join([token async for token in self._tokens(exchange)])
        if exchange.gone:
            return
        choice: dict[str, object] = {"index": 0, "finish_reason": self._reason}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.chat else "text_completion"
        exchange.answer(200, self._object(kind, [choice]) | {"usage": self._usage()})

    async def stream(self, exchange: Exchange) -> None:
        """Answer token by token as server-sent events."""
        exchange.begin(200, "text/event-stream")
        if self.chat:
            await exchange.write(self._event({"role": "assistant", "content": None}))
        async for token in self._tokens(exchange):
            event = self._event({"content": token} if self.chat else token)
            if self.generated == self.script.crash_mid_event:
                exchange.write_half(event)
                # The half has to be on its way: the kernel takes it when the loop has run once.
                await asyncio.sleep(0)
                crash(f"crash within the event of token {self.generated}")
            await exchange.write(event)
        if exchange.gone:
            return
        await exchange.write(self._event({} if self.chat else "", self._reason))
        if self.usage:
            await exchange.write(_sse(self._object(self._chunk_kind, []) | {"usage": self._usage()}))
        await exchange.write(b"data: [DONE]\n\n")
        exchange.end()

    async def _tokens(self, exchange: Exchange) -> AsyncIterator[str]:
        """The tokens, each when it is due, until the limit or until the client is gone."""
        pause = 1 / self.script.tokens_per_second if self.script.tokens_per_second else 0.0
        loop = asyncio.get_running_loop()
        due = loop.time()
        for token in islice(fake_text.tokens(self.model, self.prompt), self.limit):
            due += pause
            await asyncio.sleep(max(due - loop.time(), 0))
            if exchange.gone:
                return
            self.generated += 1
            yield token
            if self.generated == self.script.crash_after_tokens:
                await asyncio.sleep(0)
                crash(f"crash after {self.generated} tokens")
            if self.generated == self.script.hang_after_tokens:
                await asyncio.Event().wait()

    @property
    def _reason(self) -> str:
        return "length" if self.cut else "stop"

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _event(self, content: object, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta" if self.chat else "text": content, "finish_reason": reason}
        return _sse(self._object(self._chunk_kind, [choice]))

    def _object(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        name = ("chatcmpl-" if self.chat else "cmpl-") + self.name
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt_tokens + self.generated,
        }


def crash(why: str) -> NoReturn:
    """End the process as a crash does: at once, nothing flushed, nothing cleaned up."""
    print(f"error: {why}", file=sys.stderr, flush=True)
    os._exit(134)


def _sse(body: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
