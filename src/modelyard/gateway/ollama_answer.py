"""An engine's answers in Ollama's shapes: whole, or as lines of JSON.

Called by the relay through the Demands that `ollama` makes. Tool calls are sent whole, as Ollama sends them;
one that was cut off is never sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from math import sqrt
from time import perf_counter
from typing import Any

import orjson

from modelyard.gateway import chunks
from modelyard.gateway.api import OLLAMA
from modelyard.gateway.chunks import Call, Usage
from modelyard.wire.errors import ProtocolError

NANOSECONDS = 1e9


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer looks like. `chat`: in `message`, else in `response`; `arrived` is when the request came
    (`perf_counter`)."""

    model: str
    chat: bool
    hide_thinking: bool
    arrived: float

    def part(self, text: str, thinking: str = "", calls: list[Call] | None = None) -> dict[str, Any]:
        """A piece of an answer, or all of it. Raises EngineProtocol for a call without an object."""
        said: dict[str, Any] = {"role": "assistant", "content": text} if self.chat else {"response": text}
        if thinking and not self.hide_thinking:
            said["thinking"] = thinking
        if calls:
            said["tool_calls"] = [
                {
                    "id": call.id or f"call_{call.index}",
                    "function": {"index": call.index, "name": call.name, "arguments": call.value()},
                }
                for call in calls
            ]
        head: dict[str, Any] = {"model": self.model, "created_at": now()}
        return head | ({"message": said} if self.chat else said)

    def end(self, reason: str, usage: Usage, timings: dict[str, Any]) -> dict[str, Any]:
        """What the last line says beside its text. Durations are the engine's, where it tells them."""
        counted: dict[str, Any] = {
            "done": True,
            "done_reason": reason,
            "total_duration": _nanoseconds(perf_counter() - self.arrived),
            "prompt_eval_count": usage.prompt,
            "eval_count": usage.completion,
        }
        for name, told in (("prompt_eval_duration", "prompt_ms"), ("eval_duration", "predicted_ms")):
            if isinstance(milliseconds := timings.get(told), int | float):
                counted[name] = _nanoseconds(milliseconds / 1000.0)
        return counted


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


def _reason(finish: object) -> str:
    return "length" if finish == "length" else "stop"


def whole(answer: bytes, shape: Shape) -> bytes:
    """One object for all. Raises ProtocolError, or EngineProtocol for a tool call that is none."""
    value = chunks.object_of(answer)
    choice = chunks.choice_of(value)
    said = chunks.part_of(choice, "message") or choice  # completions have their text in the choice itself
    calls = chunks.whole_calls(said)
    finish = choice.get("finish_reason")
    calls = [call for call in calls if not call.was_cut(finish)]
    part = shape.part(chunks.text_of(said, "content", "text"), chunks.text_of(said, *chunks.THOUGHTS), calls)
    usage = chunks.usage_of(value) or Usage()
    return orjson.dumps(part | shape.end(_reason(finish), usage, chunks.part_of(value, "timings")))


class Lines(chunks.Translation):
    """One stream: whole events of the engine in, lines of JSON out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(OLLAMA)
        self._shape = shape
        self._waited = perf_counter() - shape.arrived  # until there was an instance to ask
        self._calls: list[Call] = []  # the last one may be unfinished
        self._finish: object = None
        self._timings: dict[str, Any] = {}

    def _take(self, value: dict[str, Any]) -> None:
        self._usage = chunks.usage_of(value) or self._usage
        self._timings = chunks.part_of(value, "timings") or self._timings
        choice = chunks.choice_of(value)
        delta = chunks.part_of(choice, "delta") or choice
        text, thought = chunks.text_of(delta, "content", "text"), chunks.text_of(delta, *chunks.THOUGHTS)
        if text or (thought and not self._shape.hide_thinking):
            self._line(self._shape.part(text, thought) | {"done": False})
        for index, piece in chunks.calls_of(delta):
            if not self._calls or self._calls[-1].index != index:
                self._send_calls()
                self._calls.append(Call(index))
            self._calls[-1].add(piece)
        self._finish = choice.get("finish_reason") or self._finish

    def _send_calls(self) -> None:
        if self._calls:
            self._line(self._shape.part("", calls=self._calls) | {"done": False})
            self._calls = []

    def _end(self) -> None:
        """Its answer is whole, if the engine said why it ended."""
        if self._finish is None:
            raise ProtocolError("it ended its stream before its answer was whole")
        if self._calls and not self._calls[-1].was_cut(self._finish):
            self._send_calls()
        end = self._shape.end(_reason(self._finish), self._usage, self._timings)
        self._line(self._shape.part("") | end | {"load_duration": _nanoseconds(self._waited)})
        self._ended = True

    def _line(self, value: dict[str, Any]) -> None:
        self._out.append(orjson.dumps(value) + b"\n")


# -- embeddings -----------------------------------------------------------------------------------------


def embeddings(answer: bytes, shape: Shape, dimensions: int | None) -> bytes:
    """The answer to `/api/embed`. Raises ProtocolError."""
    value = chunks.object_of(answer)
    usage = chunks.usage_of(value) or Usage()
    return orjson.dumps(
        {
            "model": shape.model,
            "embeddings": [_shortened(vector, dimensions) for vector in _vectors(value)],
            "total_duration": _nanoseconds(perf_counter() - shape.arrived),
            "prompt_eval_count": usage.prompt,
        }
    )


def embedding(answer: bytes) -> bytes:
    """The answer to the older `/api/embeddings`: of one text."""
    vectors = _vectors(chunks.object_of(answer))
    return orjson.dumps({"embedding": vectors[0] if vectors else []})


def _vectors(value: dict[str, Any]) -> list[list[float]]:
    data = value.get("data")
    items = [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []
    vectors = [item.get("embedding") for item in sorted(items, key=lambda item: item.get("index") or 0)]
    if not isinstance(data, list) or len(items) != len(data) or not all(isinstance(v, list) for v in vectors):
        raise ProtocolError("it answered with something else than embeddings")
    return vectors  # type: ignore[return-value]


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """The first numbers, as a vector of length 1 again."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    kept = vector[:dimensions]
    length = sqrt(sum(number * number for number in kept))
    return [number / length for number in kept] if length else kept
