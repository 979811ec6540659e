"""What an engine's answers hold, whole or as a stream: read here, written by each API in its own shape.

Used by the translations (`anthropic_answer`, `ollama_answer`, `generate`). What is not of OpenAI's shape is a
ProtocolError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from modelyard.errors import EngineProtocol
from modelyard.gateway.api import Api
from modelyard.wire.errors import ProtocolError

DONE = b"[DONE]"
THOUGHTS = ("reasoning_content", "reasoning")  # llama.cpp's name, and that of newer vLLM


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request; `cached` of the prompt were not computed anew."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


def payloads(data: bytes) -> Iterator[bytes]:
    """The data of whole events; `[DONE]` is one of them. Comments are skipped."""
    lines: list[bytes] = []
    for line in data.splitlines():
        if line.startswith(b"data:"):
            lines.append(line[5:].strip())
        elif not line and lines:
            yield b"\n".join(lines)
            lines = []
    if lines:
        yield b"\n".join(lines)


def object_of(text: bytes) -> dict[str, Any]:
    """A JSON object of the engine. Raises ProtocolError for anything else."""
    try:
        value = orjson.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ProtocolError(f"it answered with {text[:80]!r}, which is no JSON object")
    return value


def choice_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The first choice; empty when there is none, as in the event that only counts."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    return choice if isinstance(choice, dict) else {}


def part_of(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def text_of(value: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that holds a text; empty when none does."""
    return next((text for name in names if isinstance(text := value.get(name), str) and text), "")


def usage_of(answer: Mapping[str, Any]) -> Usage | None:
    usage = part_of(answer, "usage")
    if not usage:
        return None
    cached = _count(part_of(usage, "prompt_tokens_details"), "cached_tokens")
    prompt = _count(usage, "prompt_tokens")
    return Usage(prompt, _count(usage, "completion_tokens"), min(cached, prompt))


def error_of(answer: Mapping[str, Any]) -> str | None:
    """The message of an event by which an engine says that it failed; None for any other."""
    error = answer.get("error")
    if error is None:
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "it failed without a word")


@dataclass(slots=True)
class Call:
    """A tool call as far as it has come; `arguments` is JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""

    def add(self, delta: Mapping[str, Any]) -> str:
        """Take one piece; the arguments in it."""
        function = part_of(delta, "function")
        self.id = self.id or text_of(delta, "id")
        self.name = self.name or text_of(function, "name")
        piece = function.get("arguments")
        if isinstance(piece, dict):  # some engines send them whole, as an object
            piece = orjson.dumps(piece).decode()
        piece = piece if isinstance(piece, str) else ""
        self.arguments += piece
        return piece

    def value(self) -> dict[str, Any]:
        """The arguments as an object. Raises EngineProtocol when the model wrote something else."""
        try:
            value = orjson.loads(self.arguments or "{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            shown = self.arguments[:80]
            raise EngineProtocol(f"the model called {self.name!r} with {shown!r}, which is no JSON object")
        return value

    def was_cut(self, finish: object) -> bool:
        """Whether the limit of tokens fell into it: then it is no call, whatever there is of it."""
        if finish != "length":
            return False
        try:
            return not isinstance(orjson.loads(self.arguments), dict)
        except ValueError:
            return True


def calls_of(value: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The tool calls in a message, or their pieces in a delta, each with its index."""
    found = value.get("tool_calls")
    if not isinstance(found, list):
        return []
    calls = [call for call in found if isinstance(call, dict)]
    return [
        (index if isinstance(index := call.get("index"), int) else n, call) for n, call in enumerate(calls)
    ]


def whole_calls(message: Mapping[str, Any]) -> list[Call]:
    calls = []
    for index, found in calls_of(message):
        call = Call(index)
        call.add(found)
        calls.append(call)
    return calls


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


class Translation(ABC):
    """One stream: whole events of the engine in, the bytes of `api` out; nothing after its end."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._ended = False
        self._usage = Usage()
        self._out: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Nothing means the end: raises ProtocolError when the answer is not whole then."""
        try:
            for payload in payloads(data):
                if self._ended:
                    break
                if payload == DONE:
                    self._end()
                else:
                    self._read(object_of(payload))
            if not data and not self._ended:
                self._end()
        except EngineProtocol as error:
            self._fail(error.message)
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _read(self, value: dict[str, Any]) -> None:
        if (error := error_of(value)) is not None:
            self._fail(error)
        else:
            self._take(value)

    @abstractmethod
    def _take(self, value: dict[str, Any]) -> None:
        """One event of the answer."""

    @abstractmethod
    def _end(self) -> None:
        """Say that the answer is whole. Raises ProtocolError when the engine did not say why it ended."""

    def _fail(self, message: str) -> None:
        self._out.append(self._api.error_event(EngineProtocol(message)))
        self._ended = True
