"""What a client asks to have translated: LibreTranslate's fields, as JSON or as a form, and our own.

Read by the translation lane. A field that is not known here is passed over, as LibreTranslate does: its
clients send some that mean nothing to us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from modelyard import languages
from modelyard.config import Translation
from modelyard.core.languages import code_of, is_code, pair_of
from modelyard.errors import InvalidRequest, UnsupportedLanguage
from modelyard.gateway.fields import Fields, refuse
from modelyard.gateway.forms import MULTIPART, URLENCODED, Form, media_of, multipart, urlencoded
from modelyard.gateway.translation.pieces import Glossary
from modelyard.wire.json_head import parse

AUTO = "auto"
MOST_ALTERNATIVES = 10
MOST_TERMS = 500
LONGEST_TERM = 200  # characters of one, and of what stands for it, which may be as often as there are words
SHOWN = 30  # languages that a message names
LONGEST = 40  # characters of a code that are repeated
_TEXTS = ("q", "text", "texts")


@dataclass(slots=True)
class Asked:
    """`source` is `auto` or a code as it was sent, as `target` is. `single`: one text was sent, not a list of
    them. `pivot`: the language to go over; False: none; None: as the server would. `partial`: a text that
    cannot be translated fails alone. `local_only`: no text leaves this machine."""

    texts: list[object]
    single: bool
    source: str
    target: str
    html: bool = False
    alternatives: int = 0
    model: str | None = None
    glossary: Glossary = field(default_factory=lambda: Glossary({}))
    partial: bool = False
    pivot: str | bool | None = None
    local_only: bool = False


def sent(body: bytes, content_type: bytes | None) -> Form | dict[str, object]:
    """What a body says, by its content type; JSON where it looks like that, as `curl -d` calls all it sends a
    form. Raises InvalidRequest."""
    media, boundary = media_of(content_type)
    if media == MULTIPART:
        return multipart(body, boundary)
    if media == URLENCODED and not body.lstrip().startswith(b"{"):
        return urlencoded(body)
    return parse(body).value


def fields_of(given: Form | dict[str, object]) -> dict[str, object]:
    """The fields of a body, those of a form as JSON has them: several texts are a list."""
    if isinstance(given, dict):
        return given
    found: dict[str, object] = {}
    for name, values in given.fields.items():
        found[name] = _typed(name, values[-1])
        if name in _TEXTS:
            # Browsers send the lines of a form with CRLF, whatever they were.
            lines = [value.replace("\r\n", "\n") for value in values]
            found[name] = lines if len(lines) > 1 else lines[0]
    return found


def _typed(name: str, value: str) -> object:
    if name == "alternatives" and value.strip().isdecimal():
        return int(value.strip()[:10])  # Python reads no number of thousands of digits
    if name in ("partial", "pivot", "local_only") and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if name == "glossary":
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            refuse(name, "is not a JSON object")
    return value


def is_translation(value: Mapping[str, object]) -> bool:
    """Whether a body of `predict` is one of these."""
    return any(name in value for name in _TEXTS) and ("target" in value or "pair" in value)


def read(value: Mapping[str, object], limits: Translation) -> Asked:
    """What is asked for. Raises InvalidRequest with the field that is wrong, UnsupportedLanguage for what is
    no code of a language."""
    fields = Fields(value)
    texts, single, name = _texts(fields)
    asked = ways_of(fields)
    asked.texts, asked.single = texts, single
    kind = fields.text("format") or "text"
    if kind not in ("text", "html"):
        refuse("format", "is text or html")
    asked.html = kind == "html"
    asked.alternatives = fields.whole("alternatives", least=0) or 0
    if asked.alternatives > MOST_ALTERNATIVES:
        refuse("alternatives", f"is at most {MOST_ALTERNATIVES}")
    asked.partial = fields.flag("partial") or False
    check_size(texts, name, limits)
    if not asked.partial:
        for index, text in enumerate(texts):
            if problem := problem_of(text):
                refuse(name if single else f"{name}[{index}]", problem)
    return asked


def ways_of(fields: Fields) -> Asked:
    """From what to what, and how, of texts as of documents; without any text yet."""
    source, target = _languages(fields)
    return Asked(
        texts=[],
        single=True,
        source=source,
        target=target,
        model=fields.text("model") or None,
        glossary=_glossary(fields),
        pivot=_pivot(fields),
        local_only=fields.flag("local_only") or False,
    )


def _texts(fields: Fields) -> tuple[list[object], bool, str]:
    """The texts, whether it was one alone, and what their field is called."""
    given = [(name, value) for name in _TEXTS if (value := fields.take(name)) is not None]
    if not given:
        raise InvalidRequest("`q` is missing: the text to translate, or a list of texts.", param="q")
    if len(given) > 1:
        refuse(given[1][0], f"stands beside `{given[0][0]}`; send one of them")
    name, value = given[0]
    if isinstance(value, list):
        return value, False, name
    if not isinstance(value, str):
        refuse(name, "has to be a text or a list of texts")
    return [value], True, name


def _languages(fields: Fields) -> tuple[str, str]:
    """Source and target, each for itself or as a `pair`."""
    pair = fields.text("pair")
    source, target = fields.text("source"), fields.text("target")
    if pair is not None:
        try:
            source, target = pair_of(pair) if source is None and target is None else (None, None)
        except ValueError as wrong:
            refuse("pair", str(wrong))
        if source is None or target is None:
            refuse("pair", "stands instead of `source` and `target`; send one or the other")
    if not target:
        raise InvalidRequest("`target` is missing: the language to translate to.", param="target")
    return source or AUTO, target


def _glossary(fields: Fields) -> Glossary:
    terms = fields.mapping("glossary") or {}
    if len(terms) > MOST_TERMS:
        refuse("glossary", f"has {len(terms)} terms; {MOST_TERMS} are the most")
    if not all(isinstance(each, str) and term.strip() for term, each in terms.items()):
        refuse("glossary", "maps terms to their translations: texts to texts")
    if any(max(len(term), len(str(each))) > LONGEST_TERM for term, each in terms.items()):
        refuse("glossary", f"has a term, or a translation, of more than {LONGEST_TERM} characters")
    return Glossary({term: str(each) for term, each in terms.items()})


def _pivot(fields: Fields) -> str | bool | None:
    value = fields.take("pivot")
    if value is None or value is True:
        return None
    if value is not False and not (isinstance(value, str) and is_code(value)):
        refuse("pivot", "is a language's code, e.g. en, or false")
    return value


def check_size(texts: Sequence[object], name: str, limits: Translation) -> None:
    """Raises InvalidRequest for too many texts, or too long ones."""
    if len(texts) > limits.max_texts:
        refuse(name, f"holds {len(texts)} texts; {limits.max_texts} are the most in one request")
    size = sum(len(text) for text in texts if isinstance(text, str))
    if size > limits.max_chars:
        refuse(name, f"is {size:,} characters long; {limits.max_chars:,} are the most in one request")


def problem_of(text: object) -> str:
    """Why a text cannot be translated; empty when it can."""
    return "" if isinstance(text, str) else "has to be a text"


def code_among(text: str, known: frozenset[str], param: str) -> str:
    """The code of a language that is known here, which a client wrote in its own way. Raises
    UnsupportedLanguage, with those that are meant perhaps."""
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    try:
        code = code_of(text)
    except ValueError as wrong:
        raise UnsupportedLanguage(f"`{param}` {shown!r} {wrong}. {listed(known)}", param=param) from None
    found = next(languages.near(code, known), None)
    if found is not None:
        return found
    similar = [f"{one} ({languages.name(one)})" for one in languages.similar(code, known)]
    hint = f"Did you mean {' or '.join(similar)}? " if similar else ""
    raise UnsupportedLanguage(
        f"`{param}` {shown!r} is not translated here. {hint}{listed(known)}", param=param
    )


def listed(known: frozenset[str]) -> str:
    if not known:
        return "No model here translates."
    more = f" and {len(known) - SHOWN} more, see GET /languages" if len(known) > SHOWN else ""
    return f"There are {', '.join(sorted(known)[:SHOWN])}{more}."
