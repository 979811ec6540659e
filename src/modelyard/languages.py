"""Codes of languages: what they are called, and which one of those that there are somebody means.

A code is ISO 639-1 where that has one (`en`), else ISO 639-3 (`ast`); a script is said where a language is
written in another one than its usual (`zh-Hant`). Data and pure functions; whoever needs them imports this.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from functools import lru_cache

NAMES = {
    "ace": "Acehnese", "acm": "Mesopotamian Arabic", "acq": "Ta'izzi-Adeni Arabic",
    "aeb": "Tunisian Arabic", "af": "Afrikaans", "ajp": "South Levantine Arabic", "ak": "Akan",
    "am": "Amharic", "apc": "North Levantine Arabic", "ar": "Arabic", "ars": "Najdi Arabic",
    "ary": "Moroccan Arabic", "arz": "Egyptian Arabic", "as": "Assamese", "ast": "Asturian",
    "awa": "Awadhi", "ay": "Aymara", "az": "Azerbaijani", "azb": "South Azerbaijani", "ba": "Bashkir",
    "ban": "Balinese", "be": "Belarusian", "bem": "Bemba", "bg": "Bulgarian", "bho": "Bhojpuri",
    "bjn": "Banjar", "bm": "Bambara", "bn": "Bengali", "bo": "Tibetan", "br": "Breton", "bs": "Bosnian",
    "bug": "Buginese", "ca": "Catalan", "ceb": "Cebuano", "cjk": "Chokwe", "ckb": "Central Kurdish",
    "crh": "Crimean Tatar", "cs": "Czech", "cv": "Chuvash", "cy": "Welsh", "da": "Danish", "de": "German",
    "din": "Dinka", "doi": "Dogri", "dv": "Dhivehi", "dyu": "Dyula", "dz": "Dzongkha", "ee": "Ewe",
    "el": "Greek", "en": "English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque",
    "fa": "Persian", "ff": "Fulah", "fi": "Finnish", "fj": "Fijian", "fo": "Faroese", "fon": "Fon",
    "fr": "French", "fur": "Friulian", "fy": "Western Frisian", "ga": "Irish", "gd": "Scottish Gaelic",
    "gl": "Galician", "gn": "Guarani", "gom": "Konkani", "gu": "Gujarati", "ha": "Hausa", "haw": "Hawaiian",
    "he": "Hebrew", "hi": "Hindi", "hmn": "Hmong", "hne": "Chhattisgarhi", "hr": "Croatian",
    "ht": "Haitian Creole", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "ig": "Igbo",
    "ilo": "Ilocano", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "jv": "Javanese",
    "ka": "Georgian", "kab": "Kabyle", "kac": "Jingpho", "kam": "Kamba", "kbp": "Kabiye",
    "kea": "Kabuverdianu", "kg": "Kikongo", "ki": "Kikuyu", "kk": "Kazakh", "km": "Khmer",
    "kmb": "Kimbundu", "kn": "Kannada", "knc": "Central Kanuri", "ko": "Korean", "kri": "Krio",
    "ks": "Kashmiri", "ku": "Northern Kurdish", "ky": "Kyrgyz", "la": "Latin", "lb": "Luxembourgish",
    "lg": "Ganda", "li": "Limburgish", "lij": "Ligurian", "lmo": "Lombard", "ln": "Lingala", "lo": "Lao",
    "lt": "Lithuanian", "ltg": "Latgalian", "lua": "Luba-Kasai", "luo": "Luo", "lus": "Mizo",
    "lv": "Latvian", "mag": "Magahi", "mai": "Maithili", "mg": "Malagasy", "mi": "Maori",
    "min": "Minangkabau", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mni": "Meitei",
    "mos": "Mossi", "mr": "Marathi", "ms": "Malay", "mt": "Maltese", "my": "Burmese", "ne": "Nepali",
    "nl": "Dutch", "nn": "Norwegian Nynorsk", "no": "Norwegian", "nso": "Northern Sotho", "nus": "Nuer",
    "ny": "Nyanja", "oc": "Occitan", "om": "Oromo", "or": "Odia", "pa": "Punjabi", "pag": "Pangasinan",
    "pap": "Papiamento", "pl": "Polish", "prs": "Dari", "ps": "Pashto", "pt": "Portuguese", "qu": "Quechua",
    "rm": "Romansh", "rn": "Rundi", "ro": "Romanian", "ru": "Russian", "rw": "Kinyarwanda",
    "sa": "Sanskrit", "sat": "Santali", "sc": "Sardinian", "scn": "Sicilian", "sd": "Sindhi",
    "se": "Northern Sami", "sg": "Sango", "shn": "Shan", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian",
    "sm": "Samoan", "sn": "Shona", "so": "Somali", "sq": "Albanian", "sr": "Serbian", "ss": "Swati",
    "st": "Southern Sotho", "su": "Sundanese", "sv": "Swedish", "sw": "Swahili", "szl": "Silesian",
    "ta": "Tamil", "taq": "Tamasheq", "te": "Telugu", "tg": "Tajik", "th": "Thai", "ti": "Tigrinya",
    "tk": "Turkmen", "tl": "Tagalog", "tn": "Tswana", "to": "Tongan", "tpi": "Tok Pisin", "tr": "Turkish",
    "ts": "Tsonga", "tt": "Tatar", "tum": "Tumbuka", "tw": "Twi", "tzm": "Central Atlas Tamazight",
    "ug": "Uyghur", "uk": "Ukrainian", "umb": "Umbundu", "ur": "Urdu", "uz": "Uzbek", "vec": "Venetian",
    "vi": "Vietnamese", "war": "Waray", "wo": "Wolof", "xh": "Xhosa", "yi": "Yiddish", "yo": "Yoruba",
    "yue": "Cantonese", "zh": "Chinese", "zu": "Zulu",
}  # fmt: skip
_SCRIPTS = {
    "Arab": "Arabic script", "Deva": "Devanagari", "Hans": "simplified", "Hant": "traditional",
    "Latn": "Latin script", "Tfng": "Tifinagh",
}  # fmt: skip
# ISO 639-3 for what has a shorter code, and other names for what has one here.
_ALIASES = {
    "afr": "af", "aka": "ak", "als": "sq", "amh": "am", "ara": "ar", "arb": "ar", "asm": "as", "ayr": "ay",
    "aze": "az", "azj": "az", "bak": "ba", "bam": "bm", "bel": "be", "ben": "bn", "bod": "bo", "bos": "bs",
    "bre": "br", "bul": "bg", "cat": "ca", "ces": "cs", "cmn": "zh", "cym": "cy", "dan": "da", "deu": "de",
    "dik": "din", "dzo": "dz", "ell": "el", "eng": "en", "epo": "eo", "est": "et", "eus": "eu", "ewe": "ee",
    "fao": "fo", "fas": "fa", "fij": "fj", "fil": "tl", "fin": "fi", "fra": "fr", "fry": "fy", "fuv": "ff",
    "gaz": "om", "ger": "de", "gla": "gd", "gle": "ga", "glg": "gl", "grn": "gn", "guj": "gu", "hat": "ht",
    "hau": "ha", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy", "ibo": "ig", "in": "id",
    "ind": "id", "isl": "is", "ita": "it", "iw": "he", "jav": "jv", "ji": "yi", "jpn": "ja", "jw": "jv",
    "kan": "kn", "kas": "ks", "kat": "ka", "kaz": "kk", "khk": "mn", "khm": "km", "kik": "ki", "kin": "rw",
    "kir": "ky", "kmr": "ku", "kon": "kg", "kor": "ko", "kur": "ku", "lao": "lo", "lav": "lv", "lim": "li",
    "lin": "ln", "lit": "lt", "ltz": "lb", "lug": "lg", "lvs": "lv", "mal": "ml", "mar": "mr", "mkd": "mk",
    "mlg": "mg", "mlt": "mt", "mon": "mn", "mri": "mi", "msa": "ms", "mya": "my", "nb": "no", "nep": "ne",
    "nld": "nl", "nno": "nn", "nob": "no", "nor": "no", "npi": "ne", "ns": "nso", "nya": "ny", "oci": "oc",
    "ori": "or", "ory": "or", "pan": "pa", "pbt": "ps", "per": "fa", "pes": "fa", "plt": "mg", "pol": "pl",
    "por": "pt", "pus": "ps", "quy": "qu", "ron": "ro", "rum": "ro", "run": "rn", "rus": "ru", "sag": "sg",
    "san": "sa", "sin": "si", "slk": "sk", "slv": "sl", "smo": "sm", "sna": "sn", "snd": "sd", "som": "so",
    "sot": "st", "spa": "es", "sqi": "sq", "srd": "sc", "srp": "sr", "ssw": "ss", "sun": "su", "swa": "sw",
    "swe": "sv", "swh": "sw", "tam": "ta", "tat": "tt", "tel": "te", "tgk": "tg", "tgl": "tl", "tha": "th",
    "tir": "ti", "tsn": "tn", "tso": "ts", "tuk": "tk", "tur": "tr", "twi": "tw", "uig": "ug", "ukr": "uk",
    "urd": "ur", "uzb": "uz", "uzn": "uz", "vie": "vi", "wol": "wo", "xho": "xh", "ydd": "yi", "yid": "yi",
    "yor": "yo", "zho": "zh", "zhs": "zh", "zht": "zh-Hant", "zsm": "ms", "zt": "zh-Hant", "zul": "zu",
}  # fmt: skip
# Languages in a script that is not their usual one.
_APART = ("ace-Arab", "bjn-Arab", "knc-Arab", "ks-Deva", "taq-Tfng", "zh-Hant")
# What Chinese is written in.
_REGIONS = {"CN": "Hans", "SG": "Hans", "TW": "Hant", "HK": "Hant", "MO": "Hant"}
_LONGEST = 32


def name(code: str) -> str:
    """What a language is called in English; its code where nobody here knows."""
    base, _, more = code.replace("_", "-").partition("-")
    if base not in NAMES:
        base, _, implied = _ALIASES.get(base, base).partition("-")
        more = more or implied
    if base not in NAMES:
        return code
    return f"{NAMES[base]} ({_SCRIPTS.get(more, more)})" if more else NAMES[base]


def canonical(text: str) -> str:
    """The code that a text means, as this module writes codes: `zh-CN` is `zh`, `pt_BR` is `pt`, `eng_Latn`
    and `ENG` are `en`. What is no code comes back as it is."""
    base, script, region = _parts(text)
    if not base:
        return text
    base, _, implied = _ALIASES.get(base, base).partition("-")
    written = _REGIONS.get(region, "") if base == "zh" else ""
    whole = f"{base}-{script or implied or written}"
    return whole if whole in _APART else base


def near(code: str, known: frozenset[str]) -> Iterator[str]:
    """Those of `known` that a code can mean, the nearest first: itself, another spelling of it (`en` for
    `eng_Latn`), the language alone (`pt` for `pt_BR`), or a kind of the language that was named alone
    (`zh-Hans` for `zh`)."""
    if code in known:
        yield code
    forms, form, own = _forms(known), _form(code), _form(canonical(code))
    language, _, rest = form.partition("-")
    script = _REGIONS.get(rest.upper(), rest).lower()
    for each in dict.fromkeys((form, f"{language}-{script}", own, language, own.partition("-")[0])):
        if (found := forms.get(each)) is not None and found != code:
            yield found
    if not rest or (language == "zh" and script != rest):
        yield from (forms[each] for each in forms if each.startswith(f"{language}-") and forms[each] != code)


def match(text: str, known: frozenset[str]) -> str | None:
    """The first of `near`, of a text that may be no code; None when there is none."""
    return next(near(text, known), None) if text in known or _parts(text)[0] else None


def similar(text: str, available: Collection[str]) -> list[str]:
    """Codes that may have been meant by one that is not there: for errors."""
    wanted = text[:_LONGEST].casefold()
    by_name = {name(code).casefold(): code for code in available}
    found = [by_name[one] for one in get_close_matches(wanted, by_name, 2, 0.75)]
    found += get_close_matches(canonical(text[:_LONGEST]), available, 3, 0.4)
    found += [code for code in sorted(available) if wanted[:1] and code.startswith(wanted[:1])]
    return list(dict.fromkeys(found))[:3]


def _parts(text: str) -> tuple[str, str, str]:
    """Language, script and region of a code as people and models write them; empty where it has none."""
    if len(text) > _LONGEST:
        return "", "", ""
    base, *rest = text.strip().replace("_", "-").split("-")
    if not (base.isascii() and base.isalpha() and len(base) in {2, 3}):
        return "", "", ""
    script, region = "", ""
    for one in rest:
        if len(one) == 4 and one.isalpha() and not script:
            script = one.title()
        elif 2 <= len(one) <= 3 and one.isalnum() and not region:
            region = one.upper()
        else:
            return "", "", ""
    return base.lower(), script, region


def _form(code: str) -> str:
    return code.lower().replace("_", "-")


@lru_cache(maxsize=256)
def _forms(known: frozenset[str]) -> dict[str, str]:
    return {_form(code): code for code in sorted(known)}
