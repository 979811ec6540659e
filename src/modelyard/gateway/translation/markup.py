"""Marked-up text as pieces: markup stays, and the text of a block goes as one, with its marks (`runs`).

Called by the translation lane for HTML, and by `documents`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from modelyard.gateway.translation.pieces import Glossary, Pieces
from modelyard.gateway.translation.runs import Kind, Token

# Comments; elements whose text is none; tags, also with `>` in quotes; tags that are wrong or do not end. A
# `<` within a tag ends it, so that no text is read more than a few times.
_MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)"
    r"|<(script|style|code|textarea|noscript|template)(?=[\s/>])[^>]*+(?:>.*?(?:</\1\s*+>|\Z)|\Z)"
    r"""|</?+[a-z](?:[^<>"']|"[^"]*"|'[^']*')*+>|<[a-z/!?][^<>]*+(?:>|\Z)""",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"<(/?)([a-z][a-z0-9]*)(?=[\s>])[^<]*>", re.IGNORECASE)
_CODE = re.compile(r"<code(?:\s[^<>]*)?>([^<>]+)</code\s*>", re.IGNORECASE)
_WITHIN = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "del", "dfn", "em", "font", "i", "ins", "kbd",
    "label", "mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt",
    "u", "var",
))  # fmt: skip
"""Elements that stand within a sentence."""
_BLANKS = " \t\r\n\f"
_WRAPPED = re.compile(r"(?<![ \t\r\n\f])[ \t\r\f]*\n[ \t\r\n\f]*")
_PRE = re.compile(r"<(/?)pre[\s>]", re.IGNORECASE)


def pieces_of(text: str, glossary: Glossary, *, html: bool) -> Pieces:
    """Of a text, or of HTML, which need not be whole: tags, comments, scripts, styles and code stay."""
    pieces = Pieces(text, glossary, html=html)
    if html:
        put_html(pieces, text)
    else:
        pieces.put(text)
    return pieces


def put_html(pieces: Pieces, text: str) -> None:
    """Each block as one. Its lines are no lines but in `<pre>`: where they break, a space is meant."""
    preformatted = False

    def read(found: re.Match[str]) -> Token | None:
        nonlocal preformatted
        if pre := _PRE.match(found[0]):
            preformatted = not pre[1]
        return _token(pieces, found[0])

    def said(raw: str) -> str:
        return pieces.unescaped(raw if preformatted else _unwrapped(raw))

    put_runs(pieces, text, _MARKUP, read, said)


def put_runs(
    pieces: Pieces,
    text: str,
    markup: re.Pattern[str],
    read: Callable[[re.Match[str]], Token | None],
    said: Callable[[str], str],
) -> None:
    """Cut a text at what matches. `read` has it as a token of a run, None where it ends one and is kept;
    `said` is what a text says that is written so."""
    tokens: list[Token] = []

    def put(raw: str) -> None:
        text = raw if tokens else raw.lstrip(_BLANKS)
        pieces.keep(raw[: len(raw) - len(text)])
        if text:
            tokens.append(Token(Kind.TEXT, text, said(text)))

    at = 0
    for found in markup.finditer(text):
        put(text[at : found.start()])
        at = found.end()
        if (token := read(found)) is None:
            _end(pieces, tokens)
            pieces.keep(found[0])
        else:
            tokens.append(token)
    put(text[at:])
    _end(pieces, tokens)


def _end(pieces: Pieces, tokens: list[Token]) -> None:
    """Put what was read; what is around all of its text stays outside."""
    after = ""
    if tokens and (end := tokens[-1]).kind is Kind.TEXT:
        raw = end.raw.rstrip(_BLANKS)
        after = end.raw[len(raw) :]
        tokens[-1:] = [Token(Kind.TEXT, raw, end.text.rstrip(_BLANKS))] if raw else []
    first, last = 0, len(tokens)
    ends = _ends(tokens)
    while last - first > 1 and ends.get(first) == last - 1:
        first, last = first + 1, last - 1
    _keep(pieces, tokens[:first])
    pieces.put_run(tokens[first:last])
    _keep(pieces, tokens[last:])
    pieces.keep(after)
    tokens.clear()


def _keep(pieces: Pieces, tokens: Iterable[Token]) -> None:
    for token in tokens:
        pieces.keep(token.raw)


def _ends(tokens: list[Token]) -> dict[int, int]:
    """Where what is opened at a place is closed; none where that is not each in another or beside it."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for place, token in enumerate(tokens):
        if token.kind is Kind.OPEN:
            opened.append(place)
        elif token.kind is Kind.CLOSE:
            if not opened or tokens[opened[-1]].name != token.name:
                return {}
            ends[opened.pop()] = place
    return ends


def _token(pieces: Pieces, raw: str) -> Token | None:
    if code := _CODE.fullmatch(raw):
        return Token(Kind.KEPT, raw, pieces.unescaped(code[1]))
    tag = _TAG.fullmatch(raw)
    if tag is None or tag[2].lower() not in _WITHIN or raw.endswith("/>"):
        return None
    return Token(Kind.CLOSE if tag[1] else Kind.OPEN, raw, name=tag[2].lower())


def _unwrapped(raw: str) -> str:
    return _WRAPPED.sub(" ", raw)
