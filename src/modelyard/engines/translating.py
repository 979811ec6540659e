"""Servers elsewhere that translate as LibreTranslate does, seen by adapters: what they are sent first, and
what they tell.

Pure; it never asks anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from modelyard.core.languages import Pair, Pairs, is_code
from modelyard.core.types import Spec
from modelyard.engines.base import TRANSLATE, Call
from modelyard.engines.openai_http import post

LANGUAGES = "/languages"
FIELDS = ("q", "source", "target", "format", "alternatives")
MOST = 20_000  # pairs of one server, unless it translates each language to each other
_SAME = ("en", "en")  # nearly everybody has it, and it takes no model

Body = Callable[[Spec, Mapping[str, object]], Mapping[str, object]]


def warm_up(spec: Spec, body: Body) -> Sequence[Call]:
    """The calls of `Engine.warm_up`: each prompt, or any, is translated."""
    pair = next(iter(spec.pairs), _SAME)
    named = [(prompt, f"warm_up.prompts[{number}]") for number, prompt in enumerate(spec.warm_up.prompts)]
    return tuple(
        post(TRANSLATE, body(spec, {"q": [text], "source": pair[0], "target": pair[1]}), name)
        for text, name in named or [("Hello", "")]
    )


def read_languages(body: bytes) -> Pairs:
    """The pairs that `GET /languages` tells. Raises ValueError."""
    rows = json.loads(body)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its answer is not a list of languages")
    codes = frozenset(code for row in rows if is_code(code := row.get("code")))
    listed = frozenset(pair for row in rows for pair in _of_row(row, codes))
    if len(listed) == len(codes) * (len(codes) - 1):
        return Pairs(among=codes)
    if len(listed) > MOST:
        raise ValueError(f"it tells more than {MOST} pairs of languages")
    return Pairs(listed)


def _of_row(row: Mapping[str, object], codes: frozenset[str]) -> Iterator[Pair]:
    """Where it says nothing of targets, any language is one, as in early versions."""
    source, targets = row.get("code"), row.get("targets", sorted(codes))
    for target in targets if isinstance(targets, list) else ():
        if is_code(source) and is_code(target) and target != source:
            yield str(source), str(target)
