"""Names of languages in English, by their codes. Used by the translation lane's list."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = """
af Afrikaans|am Amharic|ar Arabic|as Assamese|ast Asturian|ay Aymara|az Azerbaijani|ba Bashkir|be Belarusian|
bg Bulgarian|bho Bhojpuri|bm Bambara|bn Bengali|bo Tibetan|br Breton|bs Bosnian|ca Catalan|ceb Cebuano|
ckb Central Kurdish|cs Czech|cv Chuvash|cy Welsh|da Danish|de German|doi Dogri|dv Dhivehi|dz Dzongkha|ee Ewe|
el Greek|en English|eo Esperanto|es Spanish|et Estonian|eu Basque|fa Persian|ff Fulah|fi Finnish|fil Filipino|
fj Fijian|fo Faroese|fr French|fy Western Frisian|ga Irish|gd Scottish Gaelic|gl Galician|gn Guarani|
gom Konkani|gu Gujarati|ha Hausa|haw Hawaiian|he Hebrew|hi Hindi|hmn Hmong|hr Croatian|ht Haitian Creole|
hu Hungarian|hy Armenian|id Indonesian|ig Igbo|ilo Iloko|is Icelandic|it Italian|ja Japanese|jv Javanese|
ka Georgian|kab Kabyle|kg Kongo|ki Kikuyu|kk Kazakh|km Khmer|kn Kannada|ko Korean|kri Krio|ks Kashmiri|
ku Kurdish|ky Kyrgyz|la Latin|lb Luxembourgish|lg Ganda|ln Lingala|lo Lao|lt Lithuanian|lus Mizo|lv Latvian|
mai Maithili|mg Malagasy|mi Maori|mk Macedonian|ml Malayalam|mn Mongolian|mr Marathi|ms Malay|mt Maltese|
my Burmese|nb Norwegian Bokmål|ne Nepali|nl Dutch|nn Norwegian Nynorsk|no Norwegian|ns Northern Sotho|
nso Northern Sotho|ny Nyanja|oc Occitan|om Oromo|or Odia|pa Punjabi|pap Papiamento|pl Polish|prs Dari|
ps Pashto|pt Portuguese|qu Quechua|rm Romansh|rn Rundi|ro Romanian|ru Russian|rw Kinyarwanda|sa Sanskrit|
sc Sardinian|sd Sindhi|se Northern Sami|sg Sango|si Sinhala|sk Slovak|sl Slovenian|sm Samoan|sn Shona|
so Somali|sq Albanian|sr Serbian|ss Swati|st Southern Sotho|su Sundanese|sv Swedish|sw Swahili|szl Silesian|
ta Tamil|te Telugu|tg Tajik|th Thai|ti Tigrinya|tk Turkmen|tl Tagalog|tn Tswana|to Tongan|tr Turkish|
ts Tsonga|tt Tatar|tw Twi|ug Uyghur|uk Ukrainian|ur Urdu|uz Uzbek|vec Venetian|vi Vietnamese|war Waray|
wo Wolof|xh Xhosa|yi Yiddish|yo Yoruba|yue Cantonese|zh Chinese|zh-Hans Chinese (simplified)|
zh-Hant Chinese (traditional)|zt Chinese (traditional)|zu Zulu
"""

NAMES: Mapping[str, str] = {
    code: name
    for code, _, name in (each.strip().partition(" ") for each in _NAMES.replace("\n", "").split("|"))
}


def name_of(code: str) -> str:
    """The name of a language: that of its code, else that of the language with what tells more of it; the
    code itself where it is not known."""
    if code in NAMES:
        return NAMES[code]
    language, _, more = code.replace("_", "-").partition("-")
    known = NAMES.get(language)
    return code if known is None else f"{known} ({more})"
