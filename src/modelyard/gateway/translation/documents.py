"""Documents that are translated: which kinds there are, and what of each is text. Their markup stays.

Called by the translation lane. Text goes line by line, so that the lines stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath

from modelyard.errors import InvalidRequest
from modelyard.gateway.translation.markup import pieces_of, put_runs
from modelyard.gateway.translation.pieces import Glossary, Pieces, put_between
from modelyard.gateway.translation.runs import Kind, Token

_TIME = re.compile(r"\s*\d+:\d\d:\d\d[,.]\d+\s*-->.*")
_NUMBER = re.compile(r"\ufeff?\s*\d+\s*")
_TAGS = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
_FENCE = re.compile(r"[ >]*(`{3,}|~{3,})")
_PREFIX = re.compile(r"(?:\s*+(?:>|#{1,6}(?=\s)|[-*+](?=\s)(?:\s+\[[ xX]\](?=\s))?|\d{1,9}[.)](?=\s)))*+\s*+")
_LISTED = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])\s")
_WHOLE = re.compile(r"[\s|:*_=-]*|\s*\[[^\]]+\]:\s.*", re.DOTALL)  # rules, rows of dashes, targets of links
_INLINE = re.compile(
    r"""(?<!`)(`++).{0,1000}?(?<!`)\1(?!`)|!?\[\^?|\]\([^()\s]*(?:\s+(?:"[^"]*"|'[^']*'))?\)|\]\[[^\[\]]*\]|\]"""
    r"""|https?://[^\s)>\]]+|<[^<>\s][^<>]*>|\*+|(?<!\w)_+|_+(?!\w)|~~|\||\\[^\w\s]"""
)


def _plain(pieces: Pieces, text: str) -> None:
    for line in text.splitlines(keepends=True):
        pieces.put(line)


def _subtitles(pieces: Pieces, text: str) -> None:
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        following = "".join(lines[number + 1 : number + 2])
        if _TIME.match(line) or (_NUMBER.fullmatch(line) and _TIME.match(following)):
            pieces.keep(line)
        else:
            put_between(pieces, line, _TAGS)


def _markdown(pieces: Pieces, text: str) -> None:
    reader = _Markdown(pieces)
    for line in text.splitlines(keepends=True):
        reader.read(line)


class _Marks:
    """Reads the marks of a line: emphasis, links and code go with their words; others, as those of footnotes,
    pictures and tables, stand between texts."""

    def __init__(self) -> None:
        self._open: list[str] = []

    def read(self, found: re.Match[str]) -> Token | None:
        raw = found[0]
        if raw[0] == "`":
            return Token(Kind.KEPT, raw, raw.strip("`").strip())
        if raw[0] in "*_~":
            if self._open[-1:] == [raw]:
                self._open.pop()
                return Token(Kind.CLOSE, raw, name=raw)
            self._open.append(raw)
            return Token(Kind.OPEN, raw, name=raw)
        if raw == "[":
            return Token(Kind.OPEN, raw, name=raw)
        return Token(Kind.CLOSE, raw, name="[") if raw[0] == "]" else None


class _Markdown:
    """Reads a document line by line: what its lines are depends on those before."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._fence = ""  # what ends the code that is read
        self._first = True
        self._matter = False  # within what stands before the text, between two lines of dashes
        self._blank = True  # the line before
        self._listed = False  # within a list, whose paragraphs are indented as code is
        self._code = False  # within indented code

    def read(self, line: str) -> None:
        if self._is_kept(line):
            self._pieces.keep(line)
        else:
            prefix = _PREFIX.match(line)
            end = prefix.end() if prefix else 0
            self._pieces.keep(line[:end])
            put_runs(self._pieces, line[end:], _INLINE, _Marks().read, str)
        self._first, self._blank = False, not line.strip()

    def _is_kept(self, line: str) -> bool:
        mark = _FENCE.match(line)
        if self._matter or (self._first and line.rstrip() == "---"):
            self._matter = self._first or line.rstrip() not in ("---", "...")
            return True
        if self._fence:
            if mark and mark[1].startswith(self._fence) and not line[mark.end() :].strip():
                self._fence = ""
            return True
        if mark:
            self._fence = mark[1]
            return True
        return self._is_code(line) or _WHOLE.fullmatch(line) is not None

    def _is_code(self, line: str) -> bool:
        if not line.strip():
            return self._code
        if line.startswith(("    ", "\t")):
            self._code = not self._listed and (self._code or self._blank)
        else:
            self._code = False
            self._listed = _LISTED.match(line) is not None or (self._listed and not self._blank)
        return self._code


_READERS: Mapping[str, Callable[[Pieces, str], None]] = {
    ".txt": _plain,
    ".md": _markdown,
    ".markdown": _markdown,
    ".srt": _subtitles,
}
_HTML = (".html", ".htm", ".xhtml")
KINDS = (*_READERS, *_HTML)


def document_of(name: str, data: bytes, glossary: Glossary) -> Pieces:
    """A document, by the end of its name. Raises InvalidRequest for another kind, or what is not UTF-8."""
    kind = PurePath(name).suffix.lower()
    if kind not in KINDS:
        raise InvalidRequest(
            f"`file` is {kind or 'a file without an ending'}; there are {', '.join(KINDS)}.", param="file"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as wrong:
        raise InvalidRequest(
            f"`file` is not UTF-8: its byte {wrong.start + 1} is wrong; send UTF-8.", param="file"
        ) from None
    if kind in _HTML:
        return pieces_of(text, glossary, html=True)
    pieces = Pieces(text, glossary)
    _READERS[kind](pieces, text)
    return pieces
