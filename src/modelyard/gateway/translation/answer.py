"""From texts in pieces to their translations, and to an answer of LibreTranslate's shape.

Called by the translation lane. Texts of one language go to a model together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from modelyard.config import Translation
from modelyard.core.languages import name_of
from modelyard.core.routing import Kind
from modelyard.errors import UnsupportedLanguage
from modelyard.gateway.exchange import Exchange
from modelyard.gateway.translation.detection import Guess
from modelyard.gateway.translation.pieces import Pieces
from modelyard.gateway.translation.request import Asked
from modelyard.gateway.translation.steps import USAGE, Done, Job
from modelyard.gateway.translation.translating import Translating

P = ParamSpec("P")
T = TypeVar("T")

_AT_ONCE = 4000  # characters
NOTHING = Guess("en", 0.0)
"""What LibreTranslate says of a text whose language cannot be told."""


@dataclass(slots=True)
class Part:
    """One text: in pieces, from the language `source` (None: it is not known, and the text stays), or with a
    `problem`. Translated it is `text`, by `done`; None where nothing had to be asked."""

    pieces: Pieces
    source: str | None
    problem: str = ""
    text: str | None = None
    alternatives: list[str] = field(default_factory=list)
    done: Done | None = None


async def translate(
    translating: Translating,
    exchange: Exchange,
    parts: Sequence[Part],
    job: Job,
    settings: Translation,
) -> list[Done]:
    """Fill in what the parts are in the job's target; the job is of no text yet. How it was done, for each
    language that there was. Raises what the first of them is refused with."""
    by_source: dict[str, list[Part]] = {}
    for part in parts:
        if part.problem:
            continue
        if part.source in (None, job.target) or not part.pieces.texts:
            part.text = part.pieces.raw
        else:
            assert part.source is not None
            by_source.setdefault(part.source, []).append(part)
    found = []
    for source, some in by_source.items():
        try:
            texts = [text for part in some for text in part.pieces.texts]
            done = await translating.run(exchange, replace(job, source=source, texts=texts), settings)
        except UnsupportedLanguage as error:
            if not job.partial or len(by_source) == 1:
                raise
            for part in some:
                part.problem = error.message
            continue
        await beside(sum(map(len, texts)), _fill, some, done)
        found.append(done)
    return found


async def beside(size: int, do: Callable[P, T], *args: P.args, **fields: P.kwargs) -> T:
    """Do what takes the longer the more characters it is about, so that no answer to others waits for it."""
    return await asyncio.to_thread(do, *args, **fields) if size > _AT_ONCE else do(*args, **fields)


def _fill(parts: Sequence[Part], done: Done) -> None:
    at = 0
    for part in parts:
        part.done = done
        count = len(part.pieces.texts)
        places = range(at, at + count)
        at += count
        texts = [text for place in places if (text := done.texts[place]) is not None]
        if len(texts) < count:
            part.problem = next(done.errors[place] for place in places if place in done.errors)
            continue
        part.text = done.route.text if done.route.kind is Kind.FIXED else part.pieces.filled(texts)
        if count == 1:  # those of several pieces would be mixed at random
            more = done.alternatives.get(places[0], [])
            part.alternatives = [part.pieces.filled([text]) for text in more]


def answer_of(
    asked: Asked, parts: Sequence[Part], guesses: Sequence[Guess | None], target: str, dones: Sequence[Done]
) -> dict[str, object]:
    """LibreTranslate's fields, then ours."""
    answer: dict[str, object] = {"translatedText": _one_or_all(asked, [part.text for part in parts])}
    if guesses:
        said = [(guess or NOTHING)._asdict() for guess in guesses]
        answer["detectedLanguage"] = _one_or_all(asked, said)
    if asked.alternatives:
        answer["alternatives"] = _one_or_all(asked, [part.alternatives for part in parts])
    if problems := {str(index): part.problem for index, part in enumerate(parts) if part.problem}:
        answer["errors"] = problems
    pairs = [name_of((part.source, target)) if part.source else None for part in parts]
    answer["pair"] = _common(pairs)
    answer |= {
        name: _common([_told(part.done)[name] for part in parts]) for name in ("model", "route", "pivot")
    }
    answer["usage"] = usage_of(dones)
    return answer


def usage_of(dones: Sequence[Done]) -> Mapping[str, int]:
    return {name: sum(done.usage[name] for done in dones) for name in USAGE}


def _told(done: Done | None) -> dict[str, str | None]:
    """Who translated, and how. Of two steps the model is the last one's, the first one's stands before it."""
    if done is None:
        return {"model": None, "route": None, "pivot": None}
    steps = done.route.steps
    return {
        "model": " > ".join(step.model for step in steps) or None,
        "route": done.route.kind.value,
        "pivot": steps[0].target if done.route.kind is Kind.PIVOT else None,
    }


def _common(values: Sequence[str | None]) -> object:
    """What all have in common; else one for each."""
    return values[0] if len(set(values)) == 1 else list(values) or None


def _one_or_all(asked: Asked, values: Sequence[object]) -> object:
    return values[0] if asked.single else list(values)
