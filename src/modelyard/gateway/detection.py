"""Which language a text is in: a small detector that needs no network, of the extra `translation`.

Called by the translation lane. It is loaded when it is first asked, beside the event loop: that takes some
tenths of a second and 20 MB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from modelyard.errors import NotSupported
from modelyard.languages import near

READ = 2000  # characters of a text that are looked at
SHORT = 40  # characters under which a text of a list is judged by all of them together
LEAST = 0.01  # a likelihood that is worth to be told
MOST = 5  # languages that are told
MISSING = (
    "There is no detector of languages here: say `source`, or have the server's operator run "
    "`pip install 'modelyard[translation]'`."
)


class Guess(NamedTuple):
    """A language, in the code that a model here uses, and how sure that is: 0 to 100, as LibreTranslate has
    it."""

    language: str
    confidence: float


async def detect(text: str, known: frozenset[str]) -> list[Guess]:
    """What a text may be in, the likeliest first, of the languages that are known here (all the detector's if
    none are). Empty for a text without a letter. Raises NotSupported where the detector is not installed."""
    return await asyncio.to_thread(_guesses, text, known)


async def detect_each(texts: Sequence[str], known: frozenset[str]) -> list[Guess | None]:
    """The likeliest language of each text; a short one is taken to be in what all of them together are in.
    None where nothing can be said."""
    return await asyncio.to_thread(_each, texts, known)


def _each(texts: Sequence[str], known: frozenset[str]) -> list[Guess | None]:
    together = _guesses("\n".join(text[:READ] for text in texts), known)
    each = (_guesses(text, known) if len(text) > SHORT else together for text in texts)
    return [found[0] if found else None for found in each]


def _guesses(text: str, known: frozenset[str]) -> list[Guess]:
    text = text[:READ]
    if not any(letter.isalpha() for letter in text):
        return []
    ranked: Iterable[tuple[str, float]] = _identifier().rank(text)
    likely = [(code, likelihood) for said, likelihood in ranked for code in _known(said, known)]
    total = sum(likelihood for _, likelihood in likely)
    if not total:
        return []
    shares = [(code, likelihood / total) for code, likelihood in likely[:MOST]]
    return [Guess(code, round(100 * share, 1)) for code, share in shares if share >= LEAST]


def _known(code: str, known: frozenset[str]) -> list[str]:
    """The code of a language here; none for one that is not known."""
    return list(islice(near(code, known), 1)) if known else [code]


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415
    except ImportError:
        raise NotSupported(MISSING, param="source") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
