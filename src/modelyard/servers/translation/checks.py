"""What is wrong with texts and languages that somebody wants translated. For the server and the class."""

from __future__ import annotations

from collections.abc import Collection

from modelyard.languages import match, similar

_SHOWN = 12


def problem_of(text: object) -> str:
    """Why it cannot be translated; empty when it can."""
    if not isinstance(text, str):
        return "is no text"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is no Unicode: it has half a character at {error.start}"
    return ""


def code_among(given: object, there: frozenset[str]) -> str:
    """The code of a model's language, however it is written. Raises ValueError, with what may be meant."""
    text = given if isinstance(given, str) else ""
    if (code := match(text, there)) is not None:
        return code
    close = similar(text, there)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise ValueError(f"{given!r:.60} is no language of this model{hint} It has {some(there)}")


def some(codes: Collection[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(codes) - _SHOWN} more" if len(codes) > _SHOWN else ""
    return (", ".join(sorted(codes)[:_SHOWN]) or "nothing") + more
