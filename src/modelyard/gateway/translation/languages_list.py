"""Which languages are translated here, by the models as they are now. Used by the translation lane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelyard import languages
from modelyard.core.languages import Pairs
from modelyard.core.routing import Candidate
from modelyard.languages import near


def codes_of(each: Iterable[Pairs], *, any_other: bool) -> tuple[frozenset[str], frozenset[str]]:
    """All codes to translate from, and to. `any_other`: every language that has a name here, too."""
    pairs = list(each)
    sources = frozenset[str]().union(*(one.sources for one in pairs))
    targets = frozenset[str]().union(*(one.all_targets for one in pairs))
    if any_other:
        sources |= {code for code in languages.NAMES if not any(near(code, sources))}
        targets |= {code for code in languages.NAMES if not any(near(code, targets))}
    return sources, targets


def languages_view(
    candidates: Sequence[Candidate], pivots: Sequence[str], *, any_other: bool
) -> list[dict[str, object]]:
    """LibreTranslate's list, and beside it which models translate from each language, and whether they are
    loaded. `any_other`: as for `codes_of`."""
    sources, targets = codes_of((each.pairs for each in candidates), any_other=any_other)
    direct = {
        code: frozenset[str]().union(*(each.pairs.targets(code) for each in candidates)) for code in sources
    }
    found: list[dict[str, object]] = []
    for code in sorted(sources | targets, key=languages.name):
        reached = set(direct.get(code, ()))
        for pivot in pivots:
            for over in near(pivot, frozenset(direct.get(code, ()))):
                reached |= direct.get(over, frozenset())
        if any_other and code in sources:
            reached |= targets
        models = [
            {"model": each.model, "loaded": each.ready} for each in candidates if each.pairs.targets(code)
        ]
        found.append(
            {
                "code": code,
                "name": languages.name(code),
                "targets": sorted(reached - {code}),
                "models": models,
            }
        )
    return found
