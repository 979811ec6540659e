"""An engine's chat answer as Anthropic's message: whole, or event by event.

Called by the relay through the Demand that `anthropic` makes. A stream ends with `message_stop` only when the
engine said that its answer was whole; a tool call that was cut off is never closed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import orjson

from modelyard.errors import EngineProtocol
from modelyard.gateway import chunks
from modelyard.gateway.api import ANTHROPIC
from modelyard.gateway.chunks import Call, Usage
from modelyard.wire.errors import ProtocolError

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of the request decides how its answer looks. `call`: a tool has to be called."""

    model: str
    hide_thinking: bool = False
    call: bool = False


def whole(answer: bytes, wanted: Wanted) -> bytes:
    """The message. Raises ProtocolError; EngineProtocol for a tool call that is none, or is missing."""
    value = chunks.object_of(answer)
    choice = chunks.choice_of(value)
    said = chunks.part_of(choice, "message")
    content: list[dict[str, Any]] = []
    if (thought := chunks.text_of(said, *chunks.THOUGHTS)) and not wanted.hide_thinking:
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    if text := chunks.text_of(said, "content"):
        content.append({"type": "text", "text": text})
    calls = [call for call in chunks.whole_calls(said) if not call.was_cut(choice.get("finish_reason"))]
    for call in calls:
        given = call.value()
        content.append({"type": "tool_use", "id": _call_id(call), "name": call.name, "input": given})
    _check_call(wanted, choice, bool(calls))
    message = _message(wanted.model)
    message["content"] = content
    message |= _stop(choice, bool(calls))
    message["usage"] = _usage(chunks.usage_of(value) or Usage())
    return orjson.dumps(message)


def _check_call(wanted: Wanted, choice: dict[str, Any], called: bool) -> None:
    """Raises EngineProtocol when `tool_choice` was overlooked: not every engine enforces it."""
    if wanted.call and not called and choice.get("finish_reason") in ("stop", "tool_calls"):
        raise EngineProtocol("the model called no tool, though `tool_choice` asked for a call")


def tokens(answer: bytes) -> bytes:
    """The answer to count_tokens, from an engine's count or from its tokens."""
    value = chunks.object_of(answer)
    found = value.get("tokens")
    count = len(found) if isinstance(found, list) else value.get("input_tokens")
    if not isinstance(count, int):
        raise ProtocolError("it counted no tokens")
    return orjson.dumps({"input_tokens": count})


class Events(chunks.Translation):
    """One stream: whole events of the engine in, whole events of Anthropic's out."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(ANTHROPIC)
        self._wanted = wanted
        self._begun = False
        self._index = -1  # of the last block
        self._open = ""  # the type of the block that is open
        self._call: Call | None = None  # the last; its block is opened with the first of its arguments
        self._called = False
        self._final: dict[str, Any] | None = None  # the choice that ended it

    def _take(self, value: dict[str, Any]) -> None:
        if not self._begun:
            self._begin()
        self._usage = chunks.usage_of(value) or self._usage
        choice = chunks.choice_of(value)
        delta = chunks.part_of(choice, "delta")
        if (thought := chunks.text_of(delta, *chunks.THOUGHTS)) and not self._wanted.hide_thinking:
            self._write_piece("thinking", thought)
        if text := chunks.text_of(delta, "content"):
            self._write_piece("text", text)
        for index, piece in chunks.calls_of(delta):
            self._write_call(index, piece)
        if choice.get("finish_reason"):
            self._final = choice

    def _begin(self) -> None:
        self._begun = True
        self._event("message_start", message=_message(self._wanted.model))
        self._event("ping")

    def _write_piece(self, kind: str, text: str) -> None:
        if self._open != kind:
            self._stop_block()
            empty = {"type": kind, kind: ""}
            self._start(kind, empty if kind == "text" else {**empty, "signature": ""})
        self._delta({"type": f"{kind}_delta", kind: text})

    def _write_call(self, index: int, piece: dict[str, Any]) -> None:
        call = self._call
        if call is None or call.index != index:
            if call is not None and index < call.index:
                raise ProtocolError("it went back to a tool call that was over")
            self._stop_block()
            call = self._call = Call(index)
        if arguments := call.add(piece):
            if not self._open:
                self._start_call(call)
            self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _start_call(self, call: Call) -> None:
        self._called = True
        self._start("tool_use", {"type": "tool_use", "id": _call_id(call), "name": call.name, "input": {}})

    def _start(self, kind: str, block: dict[str, Any]) -> None:
        self._index += 1
        self._open = kind
        self._event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> None:
        self._event("content_block_delta", index=self._index, delta=delta)

    def _stop_block(self) -> None:
        call, self._call = self._call, None
        if call is not None and not call.was_cut(self._final and self._final.get("finish_reason")):
            call.value()
            if not self._open:  # without arguments
                self._start_call(call)
        if self._open:
            self._open = ""
            self._event("content_block_stop", index=self._index)

    def _end(self) -> None:
        """Its answer is whole, if the engine said why it ended."""
        if self._final is None:
            raise ProtocolError("it ended its stream before its answer was whole")
        self._stop_block()
        _check_call(self._wanted, self._final, self._called)
        stop = _stop(self._final, self._called)
        self._event("message_delta", delta=stop, usage=_usage(self._usage))
        self._event("message_stop")
        self._ended = True

    def _event(self, kind: str, **fields: object) -> None:
        data = orjson.dumps({"type": kind, **fields})
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))


def _message(model: str) -> dict[str, Any]:
    """A message that has only begun."""
    return {
        "id": f"msg_{os.urandom(12).hex()}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(Usage()),
    }


def _call_id(call: Call) -> str:
    return call.id or f"toolu_{os.urandom(12).hex()}"


def _stop(choice: dict[str, Any], called: bool) -> dict[str, Any]:
    """Why it ended. Which stop sequence did it, only some engines say."""
    finish = choice.get("finish_reason")
    sequence = choice.get("stop_reason")
    if finish == "stop" and isinstance(sequence, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    reason = "tool_use" if called and finish == "stop" else _REASONS.get(str(finish), "end_turn")
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
