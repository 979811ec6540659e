"""A run of text with marks in it (bold, links, code), which is translated as one.

Made of what `markup` reads, filled by `pieces`. No model says which word became which. So what stands between
two marks is translated once more for itself, and where that is found in the translation of the whole, there
the marks go. Where that is not sure for one of them, the run is what stands between its marks, each
translated for itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from math import ceil

from modelyard.gateway.translation.scripts import is_spaced

MOST_MARKS = 20  # of one run
AGAIN = 3
"""The texts of its marks, which are translated, too, are at most so many times as long as the run."""
_ENDS = ".!?…。！？,;:"  # noqa: RUF001 - what models put behind a phrase as if it were a sentence


_WORD = re.compile(r"\w+")
_STEM, _ALIKE = 4, 0.7  # letters that two forms of a word begin with, and their share of it
_FEW, _SHORT = 6, 300  # words
_MANY = 300  # places


class Kind(Enum):
    TEXT = auto()
    OPEN = auto()
    CLOSE = auto()
    KEPT = auto()
    """A mark and its text, which stays as it is: code."""


@dataclass(frozen=True, slots=True)
class Token:
    """`raw` is how it is written; `text` what it says, of texts and what is kept; `name` what a close has in
    common with its open."""

    kind: Kind
    raw: str
    text: str = ""
    name: str = ""


@dataclass(slots=True)
class Mark:
    """`start` and `end` are where its text is in the run's, without the `lead` and `trail` white space in it.
    `place` is that of its translation; None: it stays as it is."""

    open: str
    name: str
    start: int
    close: str = ""
    end: int = 0
    lead: int = 0
    trail: int = 0
    kept: bool = False
    place: int = -1
    within: list[Mark] = field(default_factory=list)


class Run:
    """`text` is what all of it says, without white space around it, which `loose` ones have outside of their
    marks. Raises ValueError for tokens whose marks are not each in another or beside it, that have a mark
    without a text, or too many."""

    def __init__(self, tokens: Sequence[Token], *, loose: bool = True) -> None:
        whole = "".join(token.text for token in tokens)
        self.text = whole.strip()
        self._before = whole[: len(whole) - len(whole.lstrip())]
        self._after = whole[len(whole.rstrip()) :] if self.text else ""
        self._loose = loose
        self._marks = self._read(tokens)
        self._place = -1

    def _read(self, tokens: Sequence[Token]) -> list[Mark]:
        top = Mark("", "", 0)
        stack, at, count = [top], -len(self._before), 0
        for token in tokens:
            if token.kind is Kind.CLOSE:
                mark = stack.pop()
                if not stack or mark.name != token.name:
                    raise ValueError("a mark ends that did not begin")
                mark.close, mark.end = token.raw, at
            elif token.kind is not Kind.TEXT:
                if (count := count + 1) > MOST_MARKS:
                    raise ValueError("too many marks")
                mark = Mark(token.raw, token.name, at, kept=token.kind is Kind.KEPT)
                stack[-1].within.append(mark)
                if mark.kept:
                    mark.end = at + len(token.text)
                else:
                    stack.append(mark)
            at += len(token.text)
        if len(stack) > 1:
            raise ValueError("a mark does not end")
        self._check(top)
        return top.within

    def _check(self, top: Mark) -> None:
        marks = list(_all(top.within))
        if sum(mark.end - mark.start for mark in marks) > AGAIN * len(self.text):
            raise ValueError("too many marks")
        for mark in marks:
            start, end = max(mark.start, 0), min(mark.end, len(self.text))
            if not self._loose and (start, end) != (mark.start, mark.end):
                raise ValueError("a mark with the white space around the text")
            said = self.text[start:end]
            if not any(map(str.isalnum, said)):
                raise ValueError("a mark without a text")
            mark.lead, mark.trail = len(said) - len(said.lstrip()), len(said) - len(said.rstrip())
            mark.start, mark.end = start + mark.lead, end - mark.trail

    def put(self, add: Callable[[str], int]) -> None:
        """Have its texts translated; `add` gives each its place."""
        self._place = add(self.text)
        for mark in _all(self._marks):
            if not mark.kept:
                mark.place = add(self.text[mark.start : mark.end])

    def filled(self, translations: Sequence[str], escaped: Callable[[str], str]) -> str | None:
        """The translation with the marks in their places; None where these are not sure."""
        filling = _Filling(self.text, translations[self._place].strip(), translations, escaped)
        said = filling.of(self._marks)
        return None if said is None else escaped(self._before) + said + escaped(self._after)


class _Filling:
    def __init__(
        self, text: str, said: str, translations: Sequence[str], escaped: Callable[[str], str]
    ) -> None:
        self._text = text
        self._said = said
        self._translations = translations
        self._escaped = escaped

    def of(self, marks: Sequence[Mark]) -> str | None:
        return self._between(marks, (0, len(self._text)), (0, len(self._said)), (0, len(self._said)))

    def _between(
        self, marks: Sequence[Mark], source: tuple[int, int], span: tuple[int, int], out: tuple[int, int]
    ) -> str | None:
        """What is said in `out`, with the marks that are looked for in `span`; in the text they are within
        `source`."""
        found: list[tuple[int, int, Mark]] = []
        for mark in marks:
            place = self._found(mark, source, span)
            if place is None:
                return None
            found.append((*place, mark))
        found.sort(key=lambda one: one[:2])
        parts: list[str] = []
        at = out[0]
        for number, (start, end, mark) in enumerate(found):
            limit = found[number + 1][0] if number + 1 < len(found) else out[1]
            if start < at or end > limit:
                return None
            left, right = self._blanks(start, -1, mark.lead, at), self._blanks(end, 1, mark.trail, limit)
            if mark.kept:
                inner: str | None = mark.open
            else:
                inner = self._between(mark.within, (mark.start, mark.end), (start, end), (left, right))
                inner = None if inner is None else mark.open + inner + mark.close
            if inner is None:
                return None
            parts += (self._escaped(self._said[at:left]), inner)
            at = right
        return "".join([*parts, self._escaped(self._said[at : out[1]])])

    def _found(self, mark: Mark, source: tuple[int, int], span: tuple[int, int]) -> tuple[int, int] | None:
        """Where the text of a mark is in what is said: where it is as often there as in the text, and as the
        same one of them."""
        text = self._text[mark.start : mark.end]
        if (mark.start, mark.end) == source and not mark.kept:
            return span
        said = text if mark.kept else _bare(self._translations[mark.place], text)
        here = list(_occurrences(text, self._text, source))
        if not said or (mark.start, mark.end) not in here:
            return None
        for look in (_occurrences,) if mark.kept else (_occurrences, _likenesses):
            if len(there := list(look(said, self._said, span))) == len(here):
                return there[here.index((mark.start, mark.end))]
        return None

    def _blanks(self, at: int, step: int, most: int, limit: int) -> int:
        """The end of at most so much white space before or behind a place."""
        for _ in range(most):
            following = at - 1 if step < 0 else at
            if at == limit or not self._said[following].isspace():
                break
            at += step
        return at


def _all(marks: Sequence[Mark]) -> Iterator[Mark]:
    for mark in marks:
        yield mark
        yield from _all(mark.within)


def _bare(translation: str, text: str) -> str:
    """The translation of a phrase, without the period that a model ends it with."""
    said = translation.strip()
    return said if text[-1] in _ENDS else said.rstrip(_ENDS)


def _occurrences(text: str, whole: str, span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Where a text stands alone in another, whatever the case of its letters; nowhere if that may be almost
    anywhere."""
    found = re.compile(re.escape(text), re.IGNORECASE).finditer(whole, *span)
    places = [each.span() for each in islice(found, _MANY + 1)]
    for start, end in places if len(places) <= _MANY else ():
        if not (_joined(whole, start) or _joined(whole, end)):
            yield start, end


def _likenesses(text: str, whole: str, span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Where its words stand in another form, as agreement has it; of a few words, in a text that is short."""
    wanted = [found[0].lower() for found in _WORD.finditer(text)]
    words = list(_WORD.finditer(whole, *span)) if 0 < len(wanted) <= _FEW else []
    if not words or len(words) > _SHORT:
        return
    for first in range(len(words) - len(wanted) + 1):
        some = words[first : first + len(wanted)]
        if all(_alike(one[0].lower(), other) for one, other in zip(some, wanted, strict=True)):
            yield some[0].start(), some[-1].end()


def _alike(one: str, other: str) -> bool:
    stem = max(_STEM, ceil(_ALIKE * max(len(one), len(other))))
    return one == other or (len(one) >= stem and one[:stem] == other[:stem])


def _joined(text: str, at: int) -> bool:
    """Whether a word goes on over a place."""
    around = text[at - 1 : at + 1] if at else ""
    return len(around) == 2 and all(one.isalnum() and is_spaced(one) for one in around)
