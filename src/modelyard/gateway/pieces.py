"""A text as pieces: what is translated, and what stays as it is between it. Joined again they are the text.

Made by the translation lane of every text that it is given: of plain text one piece without the white space
around it, of HTML what is between its tags, of documents what `documents` finds. Terms of a glossary stand in
the answer as they are given, control characters where they were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape, unescape

# Comments; elements whose text is none; tags, also with `>` in quotes; tags that are wrong or do not end. A
# `<` within a tag ends it, so that no text is read more than a few times.
_MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)"
    r"|<(script|style|code|textarea|noscript|template)(?=[\s/>])[^>]*+(?:>.*?(?:</\1\s*+>|\Z)|\Z)"
    r"""|</?+[a-z](?:[^<>"']|"[^"]*"|'[^']*')*+>|<[a-z/!?][^<>]*+(?:>|\Z)""",
    re.DOTALL | re.IGNORECASE,
)

_CONTROL = re.compile(r"([\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+)")  # no model has words for these


class Glossary:
    """Words and what stands for them, whatever the model would say: as they are written, whole."""

    def __init__(self, terms: Mapping[str, str]) -> None:
        self._terms = terms
        longest_first = sorted(terms, key=len, reverse=True)
        words = "|".join(_to_its_end(term) for term in longest_first if re.match(r"\w", term))
        others = "|".join(_to_its_end(term) for term in longest_first if not re.match(r"\w", term))
        # Words are looked for where one begins alone, not at each letter.
        kinds = [rf"(?<!\w)(?:{words})" if words else "", others]
        self._found = re.compile(f"({'|'.join(filter(None, kinds))})") if terms else None

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
    """Put together by `keep` and `put` in the order of the text; then `texts` are to be translated, and
    `filled` is the text with their translations in their places."""

    def __init__(self, glossary: Glossary, *, html: bool = False) -> None:
        self._glossary = glossary
        self._html = html
        self._parts: list[str] = []
        self._places: list[int] = []

    @property
    def texts(self) -> list[str]:
        return [self._parts[place] for place in self._places]

    def keep(self, raw: str) -> None:
        """What stays as it is."""
        if raw:
            self._parts.append(raw)

    def put(self, raw: str) -> None:
        """What is to be translated, but for white space around it; not what has no letter or digit."""
        text = _unescaped(raw) if self._html else raw
        if not any(map(str.isalnum, text)):
            self.keep(raw)
            return
        for before, term in self._glossary.cut(text):
            for number, part in enumerate(_CONTROL.split(before)):
                if number % 2:
                    self.keep(self._escaped(part))
                else:
                    self._put(part)
            self.keep(self._escaped(term))

    def _put(self, text: str) -> None:
        core = text.strip()
        if not any(map(str.isalnum, core)):
            self.keep(self._escaped(text))
            return
        start = text.index(core)
        self.keep(self._escaped(text[:start]))
        self._places.append(len(self._parts))
        self._parts.append(core)
        self.keep(self._escaped(text[start + len(core) :]))

    def filled(self, translations: Sequence[str]) -> str:
        """The text, with one translation for each of `texts`."""
        parts = list(self._parts)
        for place, translation in zip(self._places, translations, strict=True):
            parts[place] = self._escaped(translation)
        return "".join(parts)

    def _escaped(self, text: str) -> str:
        return escape(text, quote=False).replace("\xa0", "&nbsp;") if self._html else text


def _unescaped(raw: str) -> str:
    """HTML as text. A reference to a character with thousands of digits, which Python reads no number of, is
    left as it is, and so are the others of this text."""
    try:
        return unescape(raw)
    except ValueError:
        return raw


def pieces_of(text: str, glossary: Glossary, *, html: bool) -> Pieces:
    """Of a text, or of HTML, which need not be whole: tags, comments, scripts, styles and code stay."""
    pieces = Pieces(glossary, html=html)
    if html:
        put_between(pieces, text, _MARKUP)
    else:
        pieces.put(text)
    return pieces


def put_between(pieces: Pieces, text: str, kept: re.Pattern[str]) -> None:
    """Keep what matches, and put what is between."""
    at = 0
    for found in kept.finditer(text):
        pieces.put(text[at : found.start()])
        pieces.keep(found[0])
        at = found.end()
    pieces.put(text[at:])
