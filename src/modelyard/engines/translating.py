"""Servers that translate as LibreTranslate does, ours and others, seen by adapters: what they are sent first,
and what they tell.

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


def warm_up(spec: Spec, body: Body | None = None) -> Sequence[Call]:
    """The calls of `Engine.warm_up`: each prompt, or any, is translated. `body` of a server elsewhere is
    `Engine.translation`; ours takes its model's first pair where the spec says none."""
    pair = next(iter(spec.pairs), None if body is None else _SAME)
    codes = {} if pair is None else {"source": pair[0], "target": pair[1]}
    made = body or (lambda _, fields: fields)
    named = [(prompt, f"warm_up.prompts[{number}]") for number, prompt in enumerate(spec.warm_up.prompts)]
    return tuple(
        post(TRANSLATE, made(spec, {"q": [text], **codes}), name) for text, name in named or [("Hello", "")]
    )


def warm_up_problems(spec: Spec) -> list[tuple[str, str]]:
    """What of a spec's warm-up cannot be translated."""
    if spec.warm_up.prefixes:
        return [("warm_up.prefixes", "are system messages, and this model translates; leave them out")]
    return []


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
