"""A text on its way through a model: cut into segments, and put together again of what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelyard.servers.translation.backends import Backend, Segment
from modelyard.servers.translation.sentences import cut, is_text, shortened

LONGEST = 200
"""Tokens of one segment: models are trained on sentences, and lose their way in longer ones."""
_UNSPACED = frozenset(("zh", "zh-Hant", "ja", "yue", "th", "lo", "km", "my", "bo", "dz", "shn"))


@dataclass(frozen=True, slots=True)
class Plan:
    """The pieces of a text, in order: segments to translate, and texts that stay as they are."""

    pieces: Sequence[Segment | str]

    @property
    def segments(self) -> list[Segment]:
        return [piece for piece in self.pieces if isinstance(piece, Segment)]

    def joined(self, outputs: Sequence[str]) -> str:
        """The translation, of those of its segments in their order. Sentences that no space divides in the
        source get one in a language that has it."""
        rest = iter(outputs)
        found: list[str] = []
        after = False
        for piece in self.pieces:
            if isinstance(piece, str):
                found.append(piece)
                after = False
                continue
            if after and piece.target not in _UNSPACED:
                found.append(" ")
            found.append(next(rest))
            after = True
        return "".join(found)


def planned(backend: Backend, text: str, source: str, target: str) -> Plan:
    """How to translate a text; the codes are two of the back end's. Costs the tokenizing of it: about a
    millisecond for a thousand words."""
    if source == target:
        return Plan([text])
    most = min(LONGEST, backend.longest)

    def segment(part: str) -> Segment:
        return backend.segment(part, source, target)

    parts = (part for piece in cut(text) for part in shortened(piece, lambda one: len(segment(one)), most))
    return Plan([segment(part) if is_text(part) else part for part in parts])


def longest_output(tokens: int) -> int:
    """How many tokens may be made of so many: some languages need more, and a model that has lost its way
    would never end."""
    return 3 * tokens + 16
