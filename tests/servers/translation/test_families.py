from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelyard import languages
from modelyard.errors import BadFile
from modelyard.servers.translation import families
from servers.translation import random_models


def test_all_languages_of_m2m100_have_codes_and_names(models: dict[str, Path]) -> None:
    family = families.read(models["m2m100"])
    assert (family.name, len(family.languages), len(family.pairs)) == ("m2m100", 100, 9900)
    assert family.marks("en", "zh") == (("__en__",), ("__zh__",))
    assert family.marks("nso", "no") == (("__ns__",), ("__no__",))
    assert family.longest == 128
    assert set(family.languages) <= set(languages.NAMES)


def test_all_languages_of_nllb_have_codes_and_names(models: dict[str, Path]) -> None:
    family = families.read(models["nllb"])
    assert (family.name, len(family.languages)) == ("nllb", 202)
    assert family.marks("en", "fr") == (("eng_Latn",), ("fra_Latn",))
    assert family.marks("zh", "zh-Hant") == (("zho_Hans",), ("zho_Hant",))
    assert family.marks("no", "ks-Deva") == (("nob_Latn",), ("kas_Deva",))
    assert all(languages.name(code) != code for code in family.languages)


def test_m2m100_of_eight_languages(tmp_path: Path) -> None:
    folder = random_models.m2m100(tmp_path / "wmt21")
    (folder / "tokenizer_config.json").write_text('{"language_codes": "wmt21"}')
    assert families.read(folder).languages == ("cs", "de", "en", "ha", "is", "ja", "ru", "zh")


@pytest.mark.parametrize(("source", "target"), [("en", "fr"), ("eng", "fra")])
def test_marian_has_one_pair(tmp_path: Path, source: str, target: str) -> None:
    family = families.read(random_models.marian(tmp_path / "one", source, target))
    assert (family.languages, family.pairs) == (("en", "fr"), (("en", "fr"),))
    assert family.marks("en", "fr") == ((), ())


def test_marian_has_targets_that_are_marked(tmp_path: Path) -> None:
    marks = [">>fra<<", ">>pt_BR<<", ">>pt<<", ">>cmn_Hant<<"]
    family = families.read(random_models.marian(tmp_path / "many", "eng", "mul", marks))
    assert dict(family.targets) == {"fr": ">>fra<<", "pt": ">>pt<<", "zh-Hant": ">>cmn_Hant<<"}
    assert family.marks("en", "fr") == ((">>fra<<",), ())
    with pytest.raises(KeyError):
        family.marks("en", "de")


def test_marian_reads_groups_of_languages(tmp_path: Path) -> None:
    family = families.read(random_models.marian(tmp_path / "old", "ROMANCE", "en"))
    assert {"fr", "es", "it", "pt", "ro"} < {*family.sources}
    assert family.targets == {"en": ""}
    assert family.marks("fr", "en") == family.marks("es", "en") == ((), ())
    family = families.read(random_models.marian(tmp_path / "told", "deu+nld", "eng"))
    assert family.pairs == (("de", "en"), ("nl", "en"))
    with pytest.raises(KeyError):
        family.marks("fr", "en")


def test_a_mark_that_is_no_code_is_no_language(tmp_path: Path) -> None:
    marks = [">>fra<<", ">>toki_pona<<", ">>x<<"]
    assert families.read(random_models.marian(tmp_path / "m", "en", "mul", marks)).languages == ("en", "fr")


def test_a_converted_folder_says_the_same(models: dict[str, Path], converted: dict[str, Path]) -> None:
    for name, folder in models.items():
        assert families.read(converted[name]) == families.read(folder)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    folder = random_models.marian(tmp_path / "marian")
    (folder / "tokenizer_config.json").write_text('{"source_lang": "en"}')
    with pytest.raises(BadFile, match="has no source_lang and target_lang; add them"):
        families.read(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(BadFile, match=r"lacks tokenizer_config\.json"):
        families.read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BadFile, match=r"has no config\.json"):
        families.read(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '"x"', "\0", "[" * 10_000])
def test_files_that_are_no_json_object(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(BadFile, match=r"config\.json: (cannot be read|is no JSON object)"):
        families.read_json(path)


@pytest.mark.parametrize("kind", [[], {}, ["marian"], 5])
def test_a_kind_that_is_no_text(tmp_path: Path, kind: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(BadFile, match=r"its config\.json says that it is"):
        families.read(tmp_path)


@pytest.mark.parametrize("vocabulary", [{}, {"a": "b"}, {"a": None}, {"a": -1}, {"a": 10**12}])
def test_vocabularies_that_are_none(tmp_path: Path, vocabulary: dict[str, object]) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(vocabulary))
    with pytest.raises(BadFile, match=r"vocab\.json: is no vocabulary"):
        families.read_vocabulary(path)
