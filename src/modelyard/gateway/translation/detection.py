# ruff: noqa: RUF001 - words of many languages
"""Which language a text is in: a small detector that needs no network, of the extra `translation`.

Called by the translation lane. It is loaded when it is first asked, beside the event loop: that takes some
tenths of a second and 20 MB.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from modelyard.errors import NotSupported
from modelyard.gateway.translation.scripts import DENSE, codes_in, fits, script_of
from modelyard.languages import canonical, near

_WORD = re.compile(r"[^\W\d_]+")
READ = 2000  # characters of a text that are looked at
SHORT = 40  # characters up to which a text of a list is judged by all of them together
SHORT_IF_DENSE = 12
SURE = 80.0  # percent, from which a short one is judged alone
LEAST = 1.0  # percent that are worth to be told, but for the first
MOST = 5  # languages that are told
MISSING = (
    "There is no detector of languages here: say `source`, or have the server's operator run "
    "`pip install 'modelyard[translation]'`."
)
_OF = {  # varieties that the detector tells apart, and few models do
    "ary": "ar", "arz": "ar", "grc": "el", "gug": "gn", "hbo": "he", "nn": "no", "pcm": "en", "sdh": "ckb",
    "wuu": "zh", "yue": "zh",
}  # fmt: skip
# Words by which people know at once what letters alone do not tell of a word or two.
_WORDS = {
    "de": "der die das und ist nicht ich du wie wo ein eine mit hallo danke bitte ja nein guten",
    "en": "the and is are this that not you my how what where of with to hello hi thanks please yes no good",
    "es": "el los las y es no yo qué cómo dónde un una con por hola gracias favor sí buenos buenas muy",
    "fr": "le la les et est ne pas je tu vous comment où un une avec bonjour salut merci oui non bonne",
    "it": "il lo gli la e è non io ti che come dove un una con ciao grazie prego sì no buon buona",
    "nl": "de het een en is niet ik je hoe waar van met hallo dank dag graag ja nee goede",
    "pl": "i jest nie ja ty jak gdzie to w z na się cześć dziękuję proszę tak dzień dobry",
    "pt": "o os as e é não eu como onde um uma com por olá oi obrigado obrigada sim bom boa",
    "ru": "и это не я ты как где в на с привет здравствуйте спасибо пожалуйста да нет",
    "tr": "ve bir bu değil ben sen ne nasıl nerede ile merhaba teşekkürler lütfen evet hayır çok",
    "uk": "і це не я ти як де в на з привіт дякую будь ласка так ні",
}
_KNOWS = {
    word: {code for code in _WORDS if word in _WORDS[code].split()}
    for words in _WORDS.values()
    for word in words.split()
}
_USED = ("en", "zh", "es", "ar", "hi", "fr", "pt", "ru", "de", "ja", "tr", "ko", "it", "pl", "uk", "nl")
_DEAD = {"la": 0.1, "sa": 0.1}
_MORE = 2.0
"""How much likelier each such word makes its language; and that it is one of those that are used most."""
_TELLING = 3  # words that are counted


class Guess(NamedTuple):
    """A language, in the code that a model here uses, and how sure that is, in percent of all languages that
    are written in the text's script, those that nobody here translates among them."""

    language: str
    confidence: float


async def detect(text: str, known: frozenset[str]) -> list[Guess]:
    """What a text may be in, the likeliest first: of the languages that are known here those that are written
    in its script, or, where none is, of all others that are. Empty for a text without a letter. Raises
    NotSupported where the detector is not installed."""
    return await asyncio.to_thread(_guesses, text, known)


async def detect_each(texts: Sequence[str], known: frozenset[str]) -> list[Guess | None]:
    """The likeliest language of each text, as `detect` has it; a short one that says too little is taken to
    be in what all of them in its script together are in. None where nothing can be said."""
    return await asyncio.to_thread(_each, texts, known)


def _each(texts: Sequence[str], known: frozenset[str]) -> list[Guess | None]:
    of_script: dict[str, list[str]] = {}
    scripts = [script_of(text[:READ]) for text in texts]
    for text, script in zip(texts, scripts, strict=True):
        of_script.setdefault(script, []).append(text[:READ])
    together: dict[str, list[Guess]] = {}
    found = []
    for text, script in zip(texts, scripts, strict=True):
        guesses = _guesses(text, known)
        short = len(text) <= (SHORT_IF_DENSE if script in DENSE else SHORT)
        if short and len(of_script[script]) > 1 and guesses and guesses[0].confidence < SURE:
            if script not in together:
                together[script] = _guesses("\n".join(of_script[script]), known)
            guesses = together[script]
        found.append(guesses)
    return [guesses[0] if guesses else None for guesses in found]


def _guesses(text: str, known: frozenset[str]) -> list[Guess]:
    script = script_of(text[:READ])
    if not script:
        return []
    served = frozenset(code for code in known if fits(code, script))
    chances: dict[str, float] = {}
    weights = _weights(text[:SHORT])
    for said, chance in _identifier().rank(text[:READ]):
        if fits(said, script):
            code = _code(said, served)
            chances[code] = max(chances.get(code, 0.0), chance * weights.get(_OF.get(said, said), 1.0))
    total = sum(chances.values())
    ranked = sorted(served or chances, key=lambda code: (-chances.get(code, 0.0), _place(code), code))
    if not total:  # the detector knows none that is written so
        ranked = ranked or codes_in(script)
        return [Guess(code, round(100 / len(ranked), 1)) for code in ranked[:MOST]]
    guesses = [Guess(code, round(100 * chances.get(code, 0.0) / total, 1)) for code in ranked[:MOST]]
    return guesses[:1] + [guess for guess in guesses[1:] if guess.confidence >= LEAST]


def _place(code: str) -> int:
    base = canonical(code).partition("-")[0]
    return _USED.index(base) if base in _USED else len(_USED)


def _weights(text: str) -> dict[str, float]:
    """How much likelier than by its letters a short text is in each of some languages."""
    told = Counter(code for word in set(_WORD.findall(text.lower())) for code in _KNOWS.get(word, ()))
    return _DEAD | {code: _MORE ** (1 + min(told[code], _TELLING)) for code in _USED}


def _code(said: str, served: frozenset[str]) -> str:
    """What is called so by the detector, as it is called here, if it is; a variety as what it is one of."""
    whole = _OF.get(said, said)
    return next((code for one in (said, whole) for code in near(one, served)), whole)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415
    except ImportError:
        raise NotSupported(MISSING, param="source") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
