"""What a client got: a whole answer, or the events of a stream as they came."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

DONE = "[DONE]"
PROGRESS = "event: progress\ndata: "


@dataclass
class Answer:
    """An answer that is not a stream."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The generated text of a chat answer."""
        return str(self.body["choices"][0]["message"]["content"])

    @property
    def code(self) -> str:
        """The error's code; empty for an answer that is none."""
        return str(self.body.get("error", {}).get("code", ""))

    @property
    def message(self) -> str:
        return str(self.body.get("error", {}).get("message", ""))


@dataclass
class Stream:
    """A stream as far as it has come; `feed` it what arrives.

    `left` is what does not end with an event: not empty at the end means that half an event was sent.
    """

    status: int
    headers: dict[str, str]
    events: list[str] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    comments: int = 0
    left: str = ""

    @property
    def refusal(self) -> Answer:
        """The answer that came instead of a stream."""
        return Answer(self.status, self.headers, json.loads(self.left))

    def feed(self, data: str) -> None:
        *blocks, self.left = (self.left + data).split("\n\n")
        for block in blocks:
            if block.startswith(":"):
                self.comments += 1
            elif block.startswith(PROGRESS):
                self.progress.append(json.loads(block.removeprefix(PROGRESS)))
            else:
                assert block.startswith("data: "), f"no event: {block!r}"
                self.events.append(block.removeprefix("data: "))

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events if event != DONE]

    @property
    def text(self) -> str:
        """The generated text of a chat stream."""
        deltas = [part["choices"][0]["delta"] for part in self.objects if part.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def done(self) -> bool:
        """It ended with `[DONE]`, once and last."""
        return self.events.count(DONE) == 1 and self.events[-1] == DONE

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [part["error"] for part in self.objects if "error" in part]

    @property
    def code(self) -> str:
        """The code of the error that ended it; empty when none did. Nothing may come behind an error."""
        errors = self.errors
        if not errors:
            return ""
        assert len(errors) == 1, f"more than one error: {errors}"
        assert "error" in json.loads(self.events[-1]), f"events after the error: {self.events[-3:]}"
        return str(errors[0]["code"])
