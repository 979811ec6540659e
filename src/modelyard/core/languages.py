"""Codes of languages and pairs of them: how they are written, and what a model translates.

Pure. Used by configuration, engine adapters, the router and the gateway. A code is a language's, with what
tells more of it behind: `en`, `pt-BR`, `zh-Hans`. A pair in one word has `_` within its codes: `en-zh_Hans`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from modelyard.languages import near

Pair = tuple[str, str]  # source, target

CODE = r"[A-Za-z]{2,3}(?:[_-][A-Za-z0-9]{2,8}){0,3}"
_IN_PAIR = r"(?:\*|[A-Za-z]{2,3}(?:_[A-Za-z0-9]{2,8}){0,3})"
PAIR = rf"{_IN_PAIR}-{_IN_PAIR}"


def code_of(text: str) -> str:
    """A code as it is written here: `pt_br` is `pt-BR`, `ZH-HANS` is `zh-Hans`. Raises ValueError."""
    if not re.fullmatch(CODE, text):
        raise ValueError("is not a language's code, e.g. en, pt-BR or zh-Hans")
    first, *rest = re.split("[_-]", text)
    parts = [part.title() if len(part) == 4 and part.isalpha() else part.upper() for part in rest]
    return "-".join((first.lower(), *parts))


def is_code(value: object) -> bool:
    """Whether this is a language's code, however it is written."""
    return isinstance(value, str) and re.fullmatch(CODE, value) is not None


def pair_of(text: str) -> Pair:
    """The pair of one word: `en-fr`, `en-pt_BR`, or with `*` for any language. Raises ValueError."""
    if not re.fullmatch(PAIR, text):
        raise ValueError("is not a pair of languages, e.g. en-fr, en-pt_BR or *-en")
    source, _, target = text.partition("-")
    first, second = (code if code == "*" else code_of(code) for code in (source, target))
    return first, second


def name_of(pair: Pair) -> str:
    """The pair in one word."""
    return "-".join(code.replace("-", "_") for code in pair)


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is translated: the pairs of `listed`, and any two languages of `among`. Codes are as `code_of` has
    them, or those that a server uses of itself."""

    listed: frozenset[Pair] = frozenset()
    among: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.listed) or len(self.among) > 1

    def __contains__(self, pair: Pair) -> bool:
        source, target = pair
        return pair in self.listed or (source != target and source in self.among and target in self.among)

    def __iter__(self) -> Iterator[Pair]:
        """All of them, in order."""
        both = ((source, target) for source in self.among for target in self.among if source != target)
        return iter(sorted({*self.listed, *both}))

    @property
    def sources(self) -> frozenset[str]:
        return self.among | {source for source, _ in self.listed}

    @property
    def languages(self) -> frozenset[str]:
        """All to translate from, or to."""
        return self.sources | self.all_targets

    @property
    def all_targets(self) -> frozenset[str]:
        return self.among | {target for _, target in self.listed}

    def targets(self, source: str) -> frozenset[str]:
        """What this very code is translated to."""
        both = self.among - {source} if source in self.among else frozenset()
        return both | {target for one, target in self.listed if one == source}

    def find(self, source: str, target: str) -> Pair | None:
        """The pair that these codes mean, in the codes used here; None when that is not translated."""
        for near_source in near(source, self.sources):
            for near_target in near(target, self.targets(near_source)):
                return near_source, near_target
        return None


NO_PAIRS = Pairs()
