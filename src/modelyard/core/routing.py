"""Which models a translation is asked of, in order: the first that can is the one that answers.

Pure. Called by `gateway/translation/pairs.py`, which knows the models as they are at the moment; whoever asks
them tries the next route when one is refused. Nothing here waits, loads or counts anything.

Of the models that translate a pair come first those that are not full, then those on this machine, then those
that are ready, then the better ones, then those that would answer sooner. Of models elsewhere, which are
always about as ready, the cheaper ones go before the faster ones. Then come, each only if it was configured,
two steps over a third language, a language model that is told to translate, and what is kept for the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from modelyard.core.languages import Pairs
from modelyard.languages import near

MOST = 8  # routes over third languages


class Kind(StrEnum):
    """What a route is. llm: its model is told to translate by a prompt. fallback: a model that is kept for
    when no other can. fixed: no model, its `text` is the answer."""

    DIRECT = "direct"
    PIVOT = "pivot"
    LLM = "llm"
    FALLBACK = "fallback"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that translates. `ready`: it has an instance that serves; `load_seconds` until it would have
    one, 0 when it has; `wait` are the seconds behind others beside that, infinite when it cannot be had at
    the moment. `local`: on this machine, else texts leave it. `cost` is its price for a million tokens in and
    as many out."""

    model: str
    pairs: Pairs
    quality: int = 0
    ready: bool = False
    load_seconds: float = 0.0
    wait: float = 0.0
    local: bool = True
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One translation by one model, in the codes that it uses itself."""

    model: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Route:
    """One way to translate. Each of `steps` translates what the one before it gave; none for a fixed answer,
    which is `text`."""

    kind: Kind
    steps: tuple[Step, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """What was configured. `pivots`: languages that a translation may go over, the preferred first.
    `spill_after`: a model behind whose others one waits longer (seconds) is full. `llm` and `fallback` are
    models, empty without one; `fixed` is an answer, None without one."""

    pivots: tuple[str, ...] = ()
    spill_after: float = 10.0
    local_only: bool = False
    llm: str = ""
    fallback: Candidate | None = None
    fixed: str | None = None


_Key = tuple[bool, bool, bool, int, float, float]


def routes(candidates: Iterable[Candidate], source: str, target: str, rules: Rules) -> list[Route]:
    """All ways from one language to another, the one to try first first; none when nobody translates this
    pair. `source` and `target` are different languages."""
    usable = [each for each in candidates if each.local or not rules.local_only]
    found = [Route(Kind.DIRECT, (step,)) for _, step in _steps(usable, source, target, rules)]
    found += _over_others(usable, source, target, rules)
    if rules.llm:
        found.append(Route(Kind.LLM, (Step(rules.llm, source, target),)))
    last = rules.fallback
    if last is not None and (last.local or not rules.local_only):
        found += [Route(Kind.FALLBACK, (step,)) for _, step in _steps([last], source, target, rules)]
    if rules.fixed is not None:
        found.append(Route(Kind.FIXED, text=rules.fixed))
    return found


def _steps(
    candidates: Sequence[Candidate], source: str, target: str, rules: Rules
) -> list[tuple[_Key, Step]]:
    """Those that translate the pair, in order."""
    found = [
        (_key(each, rules), Step(each.model, *pair))
        for each in candidates
        if (pair := each.pairs.find(source, target)) is not None
    ]
    return sorted(found, key=lambda one: (one[0], one[1].model))


def _key(each: Candidate, rules: Rules) -> _Key:
    return (
        each.wait > rules.spill_after,
        not each.local,
        each.local and not each.ready,
        -each.quality,
        0.0 if each.local else each.cost,
        each.load_seconds + each.wait,
    )


def _over_others(candidates: Sequence[Candidate], source: str, target: str, rules: Rules) -> list[Route]:
    """Two steps, the worse of which decides; of those that are alike, over the language named first."""
    found: dict[tuple[Step, Step], tuple[object, ...]] = {}
    ends = frozenset({source, target})
    for place, pivot in enumerate(rules.pivots):
        if any(near(pivot, ends)):
            continue
        first = _steps(candidates, source, pivot, rules)[:MOST]
        second = _steps(candidates, pivot, target, rules)[:MOST]
        for (one, step), (other, last) in product(first, second):
            key = (max(one[:3], other[:3]), place, max(one, other))
            found.setdefault((step, last), key)
    return [Route(Kind.PIVOT, steps) for steps in sorted(found, key=found.__getitem__)[:MOST]]
