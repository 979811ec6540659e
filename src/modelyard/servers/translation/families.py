"""What a model's folder says about its languages: which family it is of, and how it marks them.

Reads a folder as Hugging Face has it, and one for CTranslate2 that has the same tokenizer's files. Standard
library only, and no weights: adapters use it as well.
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
TYPES = ("float32", "float16", "int8", "int8_float32", "int8_float16", "int16")
"""What the weights of a converted model may be; they become yet another type at the load, if need be."""
USUAL_TYPES = {"cpu": "int8", "cuda": "float16"}
"""What a converted model computes in, unless somebody says."""
_LONGEST = 64 << 20  # bytes of a file: a tokenizer.json of 200 languages has 32 MB
_USUAL_LONGEST = 512
_MARK = re.compile(r">>(.+)<<")

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
            mark = self.targets[target]
            return ((mark,) if mark else ()), ()
        return (self.sources[source],), (self.targets[target],)


def read(folder: Path) -> Family:
    """What the folder's files say. Raises BadFile for one that is no whole model of these families."""
    config = read_json(folder / CONFIG)
    longest = config.get("max_position_embeddings")
    longest = longest if isinstance(longest, int) and longest > 0 else _USUAL_LONGEST
    kind = config.get("model_type")
    if kind not in {"m2m_100", "marian"} and not (kind is None and (folder / CONVERTED).is_file()):
        raise BadFile(
            f"{folder}: its config.json says that it is a {kind or 'model of no type'}; what translates is "
            "of type m2m_100 (M2M100, NLLB) or marian (OPUS-MT)"
        )
    settings = read_json(folder / TOKENIZER_CONFIG)
    if kind == "marian" or (folder / SOURCE_PIECES).is_file():
        _check(folder, VOCABULARY, SOURCE_PIECES, TARGET_PIECES)
        return _marian(folder, settings, longest)
    _check(folder, PIECES)
    if (folder / VOCABULARY).is_file():
        codes = WMT21_CODES if settings.get("language_codes") == "wmt21" else M2M100_CODES
        marks = {canonical(code): f"__{code}__" for code in codes}
        return Family("m2m100", marks, marks, longest)
    marks = {canonical(code): code for code in NLLB_CODES}
    return Family("nllb", marks, marks, longest)


def _check(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise BadFile(f"{folder}: lacks {name}, a part of its tokenizer; fetch the folder whole")


def _marian(folder: Path, settings: Mapping[str, object], longest: int) -> Family:
    source, target = (_text(settings.get(key)) for key in ("source_lang", "target_lang"))
    if not source or not target:
        raise BadFile(f"{folder}: its {TOKENIZER_CONFIG} has no source_lang and target_lang; add them")
    marks = [mark for word in read_vocabulary(folder / VOCABULARY) if (mark := _MARK.fullmatch(word))]
    targets: dict[str, str] = {}
    for mark in sorted(marks, key=lambda mark: (canonical(mark[1]) != mark[1], mark[1])):
        targets.setdefault(canonical(mark[1]), mark[0])
    return Family("marian", {canonical(source): ""}, targets or {canonical(target): ""}, longest)


def read_vocabulary(path: Path) -> dict[str, int]:
    """The numbers of its tokens. Raises BadFile."""
    found = read_json(path)
    if not found or not all(type(number) is int for number in found.values()):
        raise BadFile(f"{path}: is no vocabulary (an object of tokens and their numbers); fetch it again")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A file with one object in it. Raises BadFile."""
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
        found = json.loads(content) if len(content) <= _LONGEST else None
    except FileNotFoundError:
        raise BadFile(f"{path.parent}: has no {path.name}; name a folder with a whole model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BadFile(f"{path}: is no JSON object of at most {_LONGEST} bytes; fetch it again")
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
