"""What a model's folder says about its languages: which family it is of, and how it marks them.

Reads a folder as Hugging Face has it, and one for CTranslate2, ours or its own converter's, that has the same
tokenizer's files. Standard library only, and no weights: adapters use it as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from modelyard.errors import BadFile
from modelyard.languages import canonical
from modelyard.servers.translation import model_bin

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.json"
TARGET_VOCABULARY = "target_vocab.json"
PIECES = "sentencepiece.bpe.model"
SOURCE_PIECES, TARGET_PIECES = "source.spm", "target.spm"
TOKENIZER_FILES = (
    TOKENIZER_CONFIG, VOCABULARY, TARGET_VOCABULARY, PIECES, SOURCE_PIECES, TARGET_PIECES,
)  # fmt: skip
CONVERTED = "model.bin"
WORDS = re.compile(r"(?:shared|source|target)_vocabulary\.(?:json|txt)")
"""What CTranslate2 has beside that."""
TYPES = ("float32", "float16", "int8", "int8_float32", "int8_float16", "int16")
"""What the weights of a converted model may be; they become yet another type at the load, if need be."""
USUAL_TYPES = {"cpu": "int8", "cuda": "float16"}
"""What a converted model computes in, unless somebody says."""
MOST_TOKENS = 4_000_000
"""Numbers of a vocabulary are below it: a list is made of as many as the highest."""
_LONGEST = 64 << 20  # bytes of a file: a tokenizer.json of 200 languages has 32 MB
_USUAL_LONGEST = 512
_KINDS = frozenset(("m2m_100", "marian"))
_MARK = re.compile(r">>(.+)<<")
_CODE = re.compile(r"[a-z]{2,3}(?:-[A-Z][a-z]{3})?")

# In the order of their tokens, which come after all other ones of the vocabulary.
_M2M100 = """
af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht
hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps
pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
"""
_WMT21 = "en ha is ja cs ru zh de"
_NLLB = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab
ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl
bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn
cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn
est_Latn eus_Latn ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn
gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn
ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab
kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn
kon_Latn kor_Hang kmr_Latn lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn
lua_Latn lug_Latn luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn
mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn
nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn por_Latn prs_Arab pbt_Arab quy_Latn
ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn
sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn
szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn
tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn
vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zul_Latn
"""

# Languages that OPUS-MT's oldest models read together; for later ones `source_lang` may list them.
_GROUPS = {
    "CELTIC": "ga cy br gd kw gv",
    "NORTH_EU": "de nl fy af da fo is no nn sv",
    "NORWAY": "no nn",
    "ROMANCE": "fr wa frp oc ca rm lld fur lij lmo es pt gl lad an mwl it co nap scn vec sc ro la",
    "SAMI": "se sma smj smn sms",
    "SCANDINAVIA": "da fo is no nn sv",
    "ZH": "zh zh-Hant yue",
}

M2M100_CODES, WMT21_CODES, NLLB_CODES = (tuple(codes.split()) for codes in (_M2M100, _WMT21, _NLLB))


@dataclass(frozen=True)
class Family:
    """`sources` and `targets`: each code with the token that marks it, empty where none does. `longest` is
    how many tokens go through the model at once, with its marks."""

    name: str
    sources: Mapping[str, str]
    targets: Mapping[str, str]
    longest: int

    @cached_property
    def languages(self) -> tuple[str, ...]:
        return tuple(sorted({*self.sources, *self.targets}))

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple((one, other) for one in self.sources for other in self.targets if one != other)

    @property
    def told(self) -> dict[str, list[str]]:
        """What it translates: each of its `sources` to each of its `targets` but itself."""
        return {"sources": [*self.sources], "targets": [*self.targets]}

    def marks(self, source: str, target: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tokens that stand before a text, and before its translation. Raises KeyError."""
        if self.name == "marian":
            marks = self.sources[source], self.targets[target]
            return tuple(mark for mark in marks if mark), ()
        return (self.sources[source],), (self.targets[target],)


def is_converted(folder: Path) -> bool:
    """Whether it is for CTranslate2, and holds nothing else."""
    return (folder / CONVERTED).is_file() and _kind(read_json(folder / CONFIG)) not in _KINDS


def read(folder: Path) -> Family:
    """What the folder's files say. Raises BadFile for one that is no whole model of these families."""
    config = read_json(folder / CONFIG)
    kind = _kind(config)
    converted = kind is None and (folder / CONVERTED).is_file()
    if converted:
        config = config_of(folder)
    elif kind not in _KINDS:
        raise BadFile(
            f"{folder}: its config.json says that it is a {kind or 'model of no type'}; what translates is "
            "of type m2m_100 (M2M100, NLLB) or marian (OPUS-MT)"
        )
    longest = config.get("max_position_embeddings")
    longest = longest if isinstance(longest, int) and longest > 0 else _USUAL_LONGEST
    words = _words(folder) if converted else frozenset[str]()
    if kind == "marian" or (folder / SOURCE_PIECES).is_file():
        _check(folder, *([] if converted else [VOCABULARY]), SOURCE_PIECES, TARGET_PIECES)
        return _marian(folder, words or frozenset(read_vocabulary(folder / VOCABULARY)), longest)
    named = not converted or (folder / TOKENIZER_CONFIG).is_file()
    settings = read_json(folder / TOKENIZER_CONFIG) if named else {}
    if "__en__" in words or (not converted and (folder / VOCABULARY).is_file()):
        _check(folder, PIECES)
        codes = WMT21_CODES if settings.get("language_codes") == "wmt21" else M2M100_CODES
        marks = _there(folder, {canonical(code): f"__{code}__" for code in codes}, words)
        return Family("m2m100", marks, marks, longest)
    if not (folder / TOKENIZER).is_file():
        _check(folder, PIECES)
    marks = _there(folder, {canonical(code): code for code in NLLB_CODES}, words)
    return Family("nllb", marks, marks, longest)


def _kind(config: Mapping[str, Any]) -> str | None:
    found = config.get("model_type")
    return found if found is None else str(found)


def config_of(folder: Path) -> dict[str, Any]:
    """What a config.json says, or what the weights of a folder for CTranslate2 do. Raises BadFile."""
    config = read_json(folder / CONFIG)
    if _kind(config) in _KINDS:
        return config
    try:
        with (folder / CONVERTED).open("rb") as file:
            return config | model_bin.read(file).config
    except OSError as error:
        raise BadFile(f"{folder / CONVERTED}: cannot be read: {error}") from None
    except BadFile as error:
        raise BadFile(f"{folder / CONVERTED}: {error.message}; fetch it again") from None


def _check(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            how = "fetch the folder whole"
            if is_converted(folder):
                how = "copy it from the model that this one was made of"
            raise BadFile(f"{folder}: lacks {name}, a part of its tokenizer; {how}")


def _words(folder: Path) -> frozenset[str]:
    """What a model for CTranslate2 reads."""
    for name in ("source_vocabulary", "shared_vocabulary"):
        for path in (folder / f"{name}.json", folder / f"{name}.txt"):
            if path.is_file():
                text = _content(path).decode(errors="replace")
                found = _parsed(path, text) if path.suffix == ".json" else text.splitlines()
                if not isinstance(found, list):
                    raise BadFile(f"{path}: is no list of words; fetch it again")
                return frozenset(map(str, found))
    raise BadFile(
        f"{folder}: has {CONVERTED} and no shared_vocabulary.json beside it; fetch the folder whole"
    )


def _there(folder: Path, marks: Mapping[str, str], words: frozenset[str]) -> dict[str, str]:
    """Those that a model knows, where its words are known."""
    found = {code: mark for code, mark in marks.items() if not words or mark in words}
    if len(found) < 2:
        raise BadFile(
            f"{folder}: its vocabulary has not two languages of M2M100 or NLLB; name a model of these, or "
            "one of Marian (OPUS-MT) with its source.spm and target.spm"
        )
    return found


def _marian(folder: Path, words: frozenset[str], longest: int) -> Family:
    """The languages that it reads are not told apart; those that it writes have marks where there are
    several."""
    _check(folder, TOKENIZER_CONFIG)
    settings = read_json(folder / TOKENIZER_CONFIG)
    sources, writes = (_listed(settings.get(key)) for key in ("source_lang", "target_lang"))
    if not sources or not writes:
        raise BadFile(f"{folder}: its {TOKENIZER_CONFIG} has no source_lang and target_lang; add them")
    marks = [mark for word in words if (mark := _MARK.fullmatch(word))]
    targets: dict[str, str] = {}
    for mark in sorted(marks, key=lambda mark: (canonical(mark[1]) != mark[1], mark[1])):
        if _CODE.fullmatch(code := canonical(mark[1])):
            targets.setdefault(code, mark[0])
    return Family("marian", dict.fromkeys(sources, ""), targets or dict.fromkeys(writes, ""), longest)


def _listed(text: object) -> list[str]:
    """The codes of one language, of a group of them, or of several as OPUS-MT writes them: `fr+es+it`."""
    if not isinstance(text, str):
        return []
    return [canonical(code) for code in _GROUPS.get(text, text).replace("+", " ").split()]


def read_vocabulary(path: Path) -> dict[str, int]:
    """The numbers of its tokens. Raises BadFile."""
    found = read_json(path)
    if not found or not all(type(number) is int and 0 <= number < MOST_TOKENS for number in found.values()):
        raise BadFile(f"{path}: is no vocabulary (an object of tokens and their numbers); fetch it again")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A file with one object in it. Raises BadFile."""
    found = _parsed(path, _content(path))
    if not isinstance(found, dict):
        raise BadFile(f"{path}: is no JSON object; fetch it again")
    return found


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
    except FileNotFoundError:
        raise BadFile(f"{path.parent}: has no {path.name}; name a folder with a whole model") from None
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error}") from None
    if len(content) > _LONGEST:
        raise BadFile(f"{path}: has more than {_LONGEST} bytes; fetch it again")
    return content


def _parsed(path: Path, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path}: cannot be read: {error}") from None
