"""Text out of tokens as they come: whole characters only, and nothing of a stop text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_BEFORE = 6  # tokens of the prompt that decide how the first token reads (a leading space)
_BROKEN = "\ufffd"
_PATIENCE = 8  # tokens that may be bytes of one character


class Text:
    """The text of one answer. `add` returns what may be shown of it; after `ended` nothing more comes."""

    def __init__(self, decode: Decode, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self.stopped = False
        self._decode = decode
        self._stops = tuple(stops)
        self._tokens = list(prompt[-_BEFORE:])
        self._start, self._read = 0, len(self._tokens)
        self._held = ""

    def add(self, token: int) -> str:
        """The text that this token completes. `stopped` is true when a stop text was met."""
        self._tokens.append(token)
        return self._shown(self._next(last=False), last=False)

    def end(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._shown(self._next(last=True), last=True)

    def _next(self, last: bool) -> str:
        # Two windows that begin alike: what a tokenizer does at a beginning cancels out.
        known = self._decode(self._tokens[self._start : self._read])
        now = self._decode(self._tokens[self._start :])
        waits = now.endswith(_BROKEN) and len(self._tokens) - self._read < _PATIENCE
        if len(now) <= len(known) or (waits and not last):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return now[len(known) :]

    def _shown(self, new: str, last: bool) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of the stop text."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
