"""A text as pieces: what is translated, and what stays as it is between it. Joined again they are the text.

Made by the translation lane of every text that it is given: of plain text one piece without the white space
around it, of HTML each block (`markup`), of documents what `documents` finds. Terms of a glossary stand in
the answer as they are given, control characters where they were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape, unescape
from typing import TypeAlias

from modelyard.gateway.translation.runs import Kind, Run, Token

_CONTROL = re.compile(r"([\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+)")  # no model has words for these


class Glossary:
    """Words and what stands for them, whatever the model would say: as they are written, whole."""

    def __init__(self, terms: Mapping[str, str]) -> None:
        self.size = sum(map(len, terms))  # characters
        self._terms = terms

    @cached_property
    def _found(self) -> re.Pattern[str] | None:
        longest_first = sorted(self._terms, key=len, reverse=True)
        words = "|".join(_to_its_end(term) for term in longest_first if re.match(r"\w", term))
        others = "|".join(_to_its_end(term) for term in longest_first if not re.match(r"\w", term))
        # Words are looked for where one begins alone, not at each letter.
        kinds = [rf"(?<!\w)(?:{words})" if words else "", others]
        return re.compile(f"({'|'.join(filter(None, kinds))})") if self._terms else None

    def finds(self, text: str) -> bool:
        return self._found is not None and self._found.search(text) is not None

    def cut(self, text: str) -> list[tuple[str, str]]:
        """What is to be translated, and what stands behind it, in turn."""
        if self._found is None:
            return [(text, "")]
        parts = [*self._found.split(text), ""]
        return [
            (before, self._terms.get(term, "")) for before, term in zip(parts[::2], parts[1::2], strict=True)
        ]


def _to_its_end(term: str) -> str:
    """A pattern of a term with which no longer word goes on."""
    return re.escape(term) + (r"(?!\w)" if re.match(r"\w", term[-1]) else "")


class Pieces:
    """Put together by `keep` and `put` in the order of the text; then `texts` are to be translated, each of
    them once, and `filled` is the text with their translations in their places. `raw` is the text."""

    def __init__(self, raw: str, glossary: Glossary, *, html: bool = False) -> None:
        self.raw = raw
        self.texts: list[str] = []
        self._glossary = glossary
        self._html = html
        self._places: dict[str, int] = {}
        self._parts: list[_Part] = []
        self._said: list[str] = []

    @property
    def said(self) -> str:
        """What of the text is translated."""
        return "\n".join(self._said)

    def keep(self, raw: str) -> None:
        """What stays as it is."""
        if raw:
            self._parts.append(raw)

    def put(self, raw: str) -> None:
        """What is to be translated, but for white space around it; not what has no letter or digit."""
        self._put(raw, self.unescaped(raw))

    def put_run(self, tokens: Sequence[Token]) -> None:
        """Likewise of what has marks in it."""
        run = None
        if any(token.kind in (Kind.OPEN, Kind.KEPT) for token in tokens):
            with suppress(ValueError):
                run = Run(tokens, loose=self._html)
        apart = self._apart(tokens)
        if run is None or self._glossary.finds(run.text) or _CONTROL.search(run.text):
            self._parts += apart
            self._said += [self.texts[part] for part in apart if isinstance(part, int)]
            return
        run.put(self._add)
        self._said.append(run.text)
        self._parts.append(_Either(run, apart))

    def _apart(self, tokens: Sequence[Token]) -> list[_Part]:
        """Each text of a run for itself."""
        parts, said = self._parts, self._said
        self._parts, self._said = [], []
        for token in tokens:
            if token.kind is Kind.TEXT:
                self._put(token.raw, token.text)
            else:
                self.keep(token.raw)
        apart = self._parts
        self._parts, self._said = parts, said
        return apart

    def _put(self, raw: str, text: str) -> None:
        if not any(map(str.isalnum, text)):
            self.keep(raw)
            return
        for before, term in self._glossary.cut(text):
            for number, part in enumerate(_CONTROL.split(before)):
                if number % 2:
                    self.keep(self._escaped(part))
                else:
                    self._put_core(part)
            self.keep(self._escaped(term))

    def _put_core(self, text: str) -> None:
        core = text.strip()
        if not any(map(str.isalnum, core)):
            self.keep(self._escaped(text))
            return
        start = text.index(core)
        self.keep(self._escaped(text[:start]))
        self._parts.append(self._add(core))
        self._said.append(core)
        self.keep(self._escaped(text[start + len(core) :]))

    def _add(self, text: str) -> int:
        if (place := self._places.setdefault(text, len(self.texts))) == len(self.texts):
            self.texts.append(text)
        return place

    def filled(self, translations: Sequence[str]) -> str:
        """The text, with one translation for each of `texts`."""
        return self._filled(self._parts, translations)

    def _filled(self, parts: Sequence[_Part], translations: Sequence[str]) -> str:
        found = []
        for part in parts:
            if isinstance(part, str):
                found.append(part)
            elif isinstance(part, int):
                found.append(self._escaped(translations[part]))
            else:
                run = part.run.filled(translations, self._escaped)
                found.append(self._filled(part.apart, translations) if run is None else run)
        return "".join(found)

    def unescaped(self, raw: str) -> str:
        """What is said by what is written."""
        return _unescaped(raw) if self._html else raw

    def _escaped(self, text: str) -> str:
        return escape(text, quote=False).replace("\xa0", "&nbsp;") if self._html else text


@dataclass(frozen=True, slots=True)
class _Either:
    """A run, or else what is put apart."""

    run: Run
    apart: Sequence[_Part]


_Part: TypeAlias = "str | int | _Either"
"""What stays, the place of a text, or a run."""


def _unescaped(raw: str) -> str:
    """HTML as text. A reference to a character with thousands of digits, which Python reads no number of, is
    left as it is, and so are the others of this text."""
    try:
        return unescape(raw)
    except ValueError:
        return raw


def put_between(pieces: Pieces, text: str, kept: re.Pattern[str]) -> None:
    """Keep what matches, and put what is between."""
    at = 0
    for found in kept.finditer(text):
        pieces.put(text[at : found.start()])
        pieces.keep(found[0])
        at = found.end()
    pieces.put(text[at:])
