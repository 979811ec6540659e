"""What is wrong with texts and languages that somebody wants translated. For the server and the class."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from os import PathLike
from typing import TypeVar

from modelyard.errors import InvalidRequest
from modelyard.languages import match, similar

T = TypeVar("T")

_SHOWN = 12
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "model": ((str, PathLike), "a folder, or the name of a model, such as facebook/m2m100_418M"),
    "device": ((str,), "cpu, cuda, cuda:N or auto"),
    "dtype": ((str, type(None)), "the name of a type, such as int8, or None for what suits the device"),
    "batch_tokens": ((int, type(None)), "a whole number, or None"),
    "engine": ((str, type(None)), "ctranslate2, transformers, or None"),
    "beam_size": ((int,), "a whole number"),
}


def check_settings(**given: object) -> None:
    """Raises InvalidRequest for the first setting of a Translator that is of no type that it can have."""
    for name, value in given.items():
        kinds, wanted = _KINDS[name]
        if not isinstance(value, kinds) or isinstance(value, bool) or value == "":
            raise InvalidRequest(f"{name}: {value!r:.60} cannot be one; give {wanted}", param=name)
        if isinstance(value, int) and value < 1:
            raise InvalidRequest(f"{name}: {value} is below 1", param=name)


def listed(name: str, given: Iterable[T], wanted: str) -> list[T]:
    """What was given as a list. Raises InvalidRequest for what is none, a text among it."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidRequest(f"{name}: {given!r:.60} cannot be one; give {wanted}", param=name)
    return [*given]


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
