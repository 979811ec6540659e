"""One generation of the fake engine: its tokens, in time, whole or as a stream, or broken off on order.

Called by `servers.fake_api` while it holds a slot. It looks at the client once per token.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NoReturn

from modelyard.servers import fake_text
from modelyard.servers.fake_script import Script
from modelyard.servers.plain_http import Exchange

_PIECE = 4  # characters of a call's arguments in one token

Piece = dict[str, Any]


@dataclass
class Generation:
    """`limit` tokens after `prompt`; `cut` says that a limit ends them (finish_reason `length`). `thinking`
    tokens of reasoning come first; `calls` come instead of a text, a few characters of arguments a token."""

    model: str
    prompt: str
    prompt_tokens: int
    limit: int
    cut: bool
    chat: bool
    usage: bool
    script: Script
    thinking: int = 0
    calls: tuple[Mapping[str, Any], ...] = ()
    generated: int = 0
    called: bool = False  # all calls were made
    name: str = field(default_factory=lambda: os.urandom(12).hex())
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, exchange: Exchange) -> None:
        """Answer in one piece."""
        pieces = [piece async for piece in self._paced(exchange)]
        if exchange.gone:
            return
        choice: dict[str, object] = {"index": 0, "finish_reason": self._reason}
        if self.chat:
            choice["message"] = {"role": "assistant", **_message(pieces)}
        else:
            choice["text"] = _joined(pieces, "content")
        kind = "chat.completion" if self.chat else "text_completion"
        exchange.answer(200, self._object(kind, [choice]) | {"usage": self._usage()})

    async def stream(self, exchange: Exchange) -> None:
        """Answer token by token as server-sent events."""
        exchange.begin(200, "text/event-stream")
        if self.chat:
            await exchange.write(self._event({"role": "assistant", "content": None}))
        async for piece in self._paced(exchange):
            event = self._event(piece if self.chat else piece["content"])
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

    def _pieces(self) -> Iterator[Piece]:
        """What a chat's deltas hold, token by token."""
        tokens = fake_text.tokens(self.model, self.prompt)
        for token in islice(fake_text.tokens(self.model, f"think: {self.prompt}"), self.thinking):
            yield {"reasoning_content": token}
        if not self.calls:
            for token in tokens:
                yield {"content": token}
        for index, call in enumerate(self.calls):
            head = {"index": index, "id": f"call_{self.name}_{index}", "type": "function"}
            yield {"tool_calls": [{**head, "function": {"name": call["name"], "arguments": ""}}]}
            text = json.dumps(call["arguments"])
            for start in range(0, len(text), _PIECE):
                function = {"arguments": text[start : start + _PIECE]}
                yield {"tool_calls": [{"index": index, "function": function}]}

    async def _paced(self, exchange: Exchange) -> AsyncIterator[Piece]:
        """The pieces, each when it is due, until the limit or until the client is gone."""
        pause = 1 / self.script.tokens_per_second if self.script.tokens_per_second else 0.0
        loop = asyncio.get_running_loop()
        due = loop.time()
        pieces = self._pieces()
        for piece in islice(pieces, self.limit):
            due += pause
            await asyncio.sleep(max(due - loop.time(), 0))
            if exchange.gone:
                return
            self.generated += 1
            yield piece
            if self.generated == self.script.crash_after_tokens:
                await asyncio.sleep(0)
                crash(f"crash after {self.generated} tokens")
            if self.generated == self.script.hang_after_tokens:
                await asyncio.Event().wait()
        self.called = bool(self.calls) and next(pieces, None) is None

    @property
    def _reason(self) -> str:
        if self.called:
            return "tool_calls"
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


def _message(pieces: Sequence[Piece]) -> dict[str, object]:
    """The deltas of a chat as one message."""
    found: dict[str, object] = {"content": _joined(pieces, "content")}
    if thought := _joined(pieces, "reasoning_content"):
        found["reasoning_content"] = thought
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        for call in piece.get("tool_calls", ()):
            if "id" in call:
                calls.append({**call, "function": dict(call["function"])})
            else:
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    return found | {"tool_calls": calls} if calls else found


def _joined(pieces: Sequence[Piece], name: str) -> str:
    return "".join(piece.get(name, "") for piece in pieces)


def crash(why: str) -> NoReturn:
    """End the process as a crash does: at once, nothing flushed, nothing cleaned up."""
    print(f"error: {why}", file=sys.stderr, flush=True)
    os._exit(134)


def _sse(body: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
