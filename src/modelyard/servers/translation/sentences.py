# ruff: noqa: RUF001 - the punctuation of many scripts
"""Cuts texts into what a model translates at once, and loses nothing: the pieces, joined, are the text.

Line breaks, control characters and whitespace between sentences are pieces of their own. A sentence's end is
looked for with care: two sentences in one piece are translated all the same, half a sentence is not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

# Line breaks, tabs and whatever else only controls, with the whitespace around them. Each expression begins
# where a run does: one that could begin anywhere in it would take the square of its length.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_BREAK = re.compile(rf"((?<![^\S{_CONTROL}])[^\S{_CONTROL}]*+[{_CONTROL}][\s{_CONTROL}]*+)")
_END = re.compile(
    r"""(?:(?<![.!?…।؟۔])[.!?…।؟۔]++["'”’»)\]]*+(?=\s)|[。！？｡]++["'”’»」』）]*+)(\s*+)""",
)
# What ends in a period within a sentence: abbreviations, initials, and numbers of days.
_WITHIN = re.compile(
    r"(?:^|[\s(\"'«“])(?:\w|\d{1,2}|(?:\w\.)+\w|mrs?|ms|mme|mlle|dr|prof|st|sra?|dra|jr|vs|etc|bzw|ca|nr|inc|ltd|"
    r"fig|vol|pp|al|ed|approx|dept|usw|evtl|ggf|str|uds?)\.$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,;:،؛—–]\s+|[、，；：]")
_SPACE = re.compile(r"\s+")
_JOINED = 16  # characters that make one sign, at most
_CHARACTERS = 4
"""About so many make a token."""


def cut(text: str) -> list[str]:
    """Sentences, and what stands between them."""
    pieces: list[str] = []
    for number, line in enumerate(_BREAK.split(text)):
        pieces += [line] if number % 2 else _sentences(line)
    return [piece for piece in pieces if piece]


def is_text(piece: str) -> bool:
    """Whether there is anything to translate in it: a letter or a digit."""
    return any(character.isalnum() for character in piece)


def shortened(piece: str, length: Callable[[str], int], most: int) -> Iterator[str]:
    """The piece in parts of at most `most` tokens, as `length` counts them, at commas and spaces if there are
    any. Spaces between parts are parts. What one character takes is taken."""
    rest = [piece]
    if not is_text(piece):
        yield rest.pop()
    while rest:
        part = rest.pop()
        short = len(part) <= 2 * most * _CHARACTERS  # one that is longer need not be counted
        if len(part) <= 1 or part.isspace() or (short and (not is_text(part) or length(part) <= most)):
            yield part
        else:
            rest += reversed(_halves(part, min(len(part) // 2, most * _CHARACTERS)))


def _sentences(line: str) -> Iterator[str]:
    start = len(line) - len(line.lstrip())
    yield line[:start]
    for end in _END.finditer(line, start):
        following = line[end.end() : end.end() + 1]
        sentence = line[start : end.start(1)]
        if not following or following.islower() or _WITHIN.search(sentence[-20:]):
            continue
        yield sentence
        yield end[1]
        start = end.end()
    last = line[start:].rstrip()
    yield last
    yield line[start + len(last) :]


def _halves(part: str, place: int) -> list[str]:
    """A part in two near a place, and the space that is between them."""
    low, high = place // 2, place + place // 2 + 1
    for boundary in (_CLAUSE, _SPACE):
        ends = [one.end() for one in boundary.finditer(part, low, high) if one.end() < len(part)]
        if ends:
            place = min(ends, key=lambda end: abs(end - place))
            break
    else:
        place = max(1, place)
        whole = (end for end in range(place, min(place + _JOINED, len(part))) if not _joins(part[end]))
        place = next(whole, place)
    left, right = part[:place].rstrip(), part[place:].lstrip()
    return [one for one in (left, part[len(left) : len(part) - len(right)], right) if one]


def _joins(character: str) -> bool:
    """Whether it makes one sign with the character before it."""
    return character in "\u200d\ufe0f" or unicodedata.combining(character) > 0
