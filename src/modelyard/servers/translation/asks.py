"""What requests for translations ask for, read and checked, in LibreTranslate's terms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from modelyard.servers.translation.checks import code_among, problem_of, some

MOST_TEXTS = 10_000
MOST_ALTERNATIVES = 10


class Refused(Exception):
    """An answer that is an error, in LibreTranslate's shape and with our own fields beside."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, "code": code, **({"param": param} if param else {})}


@dataclass(frozen=True)
class Ask:
    """The texts of one request; those that are none (with `partial`) are in `errors` already, by their place.
    `single`: one text was asked for, not a list."""

    texts: Sequence[str]
    source: str
    target: str
    alternatives: int
    partial: bool
    single: bool
    errors: dict[int, str]


class Served:
    """What a model translates."""

    def __init__(self, languages: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
        self.languages = frozenset(languages)
        self.first = pairs[0]
        self.pairs = frozenset(pairs)


def ask(body: bytes, served: Served) -> Ask:
    """Read the body of a request. Without `source` and `target` it is the model's first pair. Raises
    Refused."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid_request", f"the body is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise Refused(400, "invalid_request", "the body must be a JSON object")
    found, partial = given.get("q"), given.get("partial") is True
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or len(texts) > MOST_TEXTS:
        message = f"`q` must be a text, or a list of at most {MOST_TEXTS}"
        raise Refused(400, "invalid_request", message, "q")
    errors = {place: why for place, text in enumerate(texts) if (why := problem_of(text))}
    if errors and not partial:
        place, why = next(iter(errors.items()))
        raise Refused(400, "invalid_request", f"q[{place}]: {why}", "q")
    source, target = _pair(given, served)
    alternatives = given.get("alternatives", 0)
    if type(alternatives) is not int or not 0 <= alternatives <= MOST_ALTERNATIVES:
        message = f"`alternatives` must be a whole number from 0 to {MOST_ALTERNATIVES}"
        raise Refused(400, "invalid_request", message, "alternatives")
    plain = ["" if place in errors else text for place, text in enumerate(texts)]
    return Ask(plain, source, target, alternatives, partial, isinstance(found, str), errors)


def _pair(given: dict[str, object], served: Served) -> tuple[str, str]:
    if given.get("source") is None and given.get("target") is None:
        return served.first
    source, target = (_code(given, name, served) for name in ("source", "target"))
    if source != target and (source, target) not in served.pairs:
        targets = {other for one, other in served.pairs if one == source}
        message = f"{source}-{target} is no pair of this model; from {source} it has {some(targets)}"
        raise Refused(400, "unsupported_language", message, "target")
    return source, target


def _code(given: dict[str, object], name: str, served: Served) -> str:
    try:
        return code_among(given.get(name), served.languages)
    except ValueError as wrong:
        raise Refused(400, "unsupported_language", f"`{name}`: {wrong}", name) from None
