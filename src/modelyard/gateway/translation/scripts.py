"""Which script a text is in, and which languages are written in it. Used by `detection`."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

from modelyard.languages import canonical

LATIN = "LATIN"
# By script, as Unicode names its letters: what is written in it; in Latin is what stands nowhere here.
_WRITTEN = {
    "ARABIC": "ar acm acq aeb ajp apc ars ary arz azb ckb fa ks prs ps sd sdh ug ur uzs",
    "ARMENIAN": "hy",
    "BENGALI": "bn as mni",
    "CJK": "zh yue wuu ja",
    "CYRILLIC": "ru uk be bg mk sr ba cv kk ky mn tg tt uz",
    "DEVANAGARI": "hi mr ne awa bho doi gom hne mag mai sa",
    "ETHIOPIC": "am ti",
    "GEORGIAN": "ka",
    "GREEK": "el grc",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he hbo yi",
    "KANA": "ja",
    "KANNADA": "kn",
    "KHMER": "km",
    "LAO": "lo",
    "MALAYALAM": "ml",
    "MEETEI": "mni",
    "MONGOLIAN": "mn",
    "MYANMAR": "my shn",
    "OL": "sat",
    "ORIYA": "or",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAANA": "dv",
    "THAI": "th",
    "TIBETAN": "bo dz",
    "TIFINAGH": "tzm taq",
}
_IN_LATIN_TOO = ("sr", "uz", "gom", "taq", "ku")
# What a code may name, by ISO 15924.
_SAID = {"Arab": "ARABIC", "Cyrl": "CYRILLIC", "Deva": "DEVANAGARI", "Latn": LATIN, "Tfng": "TIFINAGH"}
_KANA = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA")
DENSE = frozenset({"CJK", "KANA", "HANGUL"})
"""One sign of these says as much as some letters of others."""
_SIGNS = 3
_UNSPACED = frozenset({"CJK", *_KANA, "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})
"""What has no spaces between its words; Korean words begin with what is a word alone."""
_KANA_IN = 10  # one such sign in so many is more than a name in a Chinese text

_BY_CODE = {
    code: frozenset(script for script, codes in _WRITTEN.items() if code in codes.split())
    for codes in _WRITTEN.values()
    for code in codes.split()
}
for _code in _IN_LATIN_TOO:
    _BY_CODE[_code] = _BY_CODE.get(_code, frozenset()) | {LATIN}


def script_of(text: str) -> str:
    """The script of most of a text's letters; empty without a letter."""
    counts = Counter(_script(letter) for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    counts.pop("", None)
    if kana := sum(counts.pop(one, 0) for one in _KANA):
        han = counts["CJK"] if kana * _KANA_IN >= counts["CJK"] else 0
        counts["CJK"] -= han
        counts["KANA"] = kana + han
    weights = {script: count * (_SIGNS if script in DENSE else 1) for script, count in counts.items()}
    return max(weights, key=weights.__getitem__, default="")


def fits(code: str, script: str) -> bool:
    """Whether a language, in whatever code, is written in this script."""
    base, _, said = canonical(code).partition("-")
    if said in _SAID:
        return script == _SAID[said]
    return script in _BY_CODE.get(base, (LATIN,))


def codes_in(script: str) -> list[str]:
    """Languages that are written in a script other than Latin, the one that most write first."""
    return _WRITTEN.get(script, "").split()


def is_spaced(letter: str) -> bool:
    """Whether words that are written in its script have spaces between them."""
    return _script(letter) not in _UNSPACED


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").partition(" ")[0]
    if name == "IDEOGRAPHIC":  # what repeats the sign before
        return "CJK"
    return name if name == LATIN or name in _WRITTEN or name in _KANA else ""
