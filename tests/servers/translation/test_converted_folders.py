"""Folders that are for CTranslate2 already, as its own converter makes them, and as many on the hub are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("ctranslate2")

from modelyard.errors import BadFile
from modelyard.servers.translation import families, packed
from modelyard.servers.translation.tokens import Tokenizer
from modelyard.servers.translation.translator import Translator
from servers.translation import contract, random_models
from servers.translation.conftest import MAKERS


@pytest.fixture
def theirs(converted: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {
        name: random_models.as_ctranslate2_has_it(folder, tmp_path / name)
        for name, folder in converted.items()
    }


@pytest.mark.parametrize("family", MAKERS)
def test_they_translate_as_ours(converted: dict[str, Path], theirs: dict[str, Path], family: str) -> None:
    assert families.read(theirs[family]) == families.read(converted[family])
    ours, other = (contract.opened("ctranslate2", one[family]) for one in (converted, theirs))
    segments = contract.segments(ours)
    assert contract.segments(other) == segments
    assert other.run(segments, max_output=12) == ours.run(segments, max_output=12)


def test_the_words_may_be_lines(theirs: dict[str, Path]) -> None:
    for name in ("m2m100", "group"):
        before = families.read(theirs[name])
        words = theirs[name] / "shared_vocabulary.json"
        (theirs[name] / "shared_vocabulary.txt").write_text("\n".join(json.loads(words.read_text())))
        words.unlink()
        assert families.read(theirs[name]) == before


def test_languages_are_those_that_it_has_words_for(theirs: dict[str, Path]) -> None:
    path = theirs["nllb"] / "shared_vocabulary.json"
    words = [
        word if word in ("eng_Latn", "fra_Latn") or "_" not in word else f"x{word}"
        for word in json.loads(path.read_text())
    ]
    path.write_text(json.dumps(words))
    (theirs["nllb"] / "tokenizer_config.json").unlink()
    assert families.read(theirs["nllb"]).languages == ("en", "fr")


def test_one_of_another_family_is_refused(theirs: dict[str, Path]) -> None:
    path = theirs["nllb"] / "shared_vocabulary.json"
    words = [word if word == "eng_Latn" else f"x{word}" for word in json.loads(path.read_text())]
    path.write_text(json.dumps(words))
    with pytest.raises(BadFile, match="has not two languages of M2M100 or NLLB; name a model of these"):
        families.read(theirs["nllb"])


@pytest.mark.parametrize("family", MAKERS)
def test_one_is_packed_as_it_is(theirs: dict[str, Path], tmp_path: Path, family: str) -> None:
    packed.pack(theirs[family], tmp_path / "packed", "int8")
    with (tmp_path / "packed").open("rb") as file:
        found = packed.facts(file)
    size = (tmp_path / "packed").stat().st_size
    assert (found["kind"], found["dtypes"]) == ("ctranslate2", {"float32": size})
    assert found["translation"] == families.read(theirs[family]).told
    assert isinstance(config := found["config"], dict)
    assert (config["d_model"], config["max_position_embeddings"]) == (random_models.D, 128)
    (tmp_path / "out").mkdir()
    packed.unpack(tmp_path / "packed", tmp_path / "out")
    with Translator(tmp_path / "out", "cpu") as one, Translator(theirs[family], "cpu") as other:
        assert one.translate("the red house", "en", "fr") == other.translate("the red house", "en", "fr")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("m2m100", "sentencepiece.bpe.model"),
        ("nllb", "sentencepiece.bpe.model"),
        ("marian", "target.spm"),
        ("marian", "tokenizer_config.json"),
    ],
)
def test_what_is_missing_is_to_be_copied(theirs: dict[str, Path], family: str, name: str) -> None:
    (theirs[family] / name).unlink()
    with pytest.raises(BadFile, match=f"lacks {name}, a part of its tokenizer; copy it from the model that"):
        Translator(theirs[family])


def test_what_is_damaged_says_which_file(theirs: dict[str, Path]) -> None:
    folder = theirs["marian"]
    path = folder / "model.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFile, match=r"model\.bin: this is a model for CTranslate2 that is damaged"):
        families.read(folder)
    (folder / "shared_vocabulary.json").write_text("[1")
    with pytest.raises(BadFile, match=r"model\.bin: this is"):
        Translator(folder)
    for words in ("null", "7", '{"a": 1}'):
        (theirs["nllb"] / "shared_vocabulary.json").write_text(words)
        with pytest.raises(BadFile, match=r"shared_vocabulary\.json: is no list of words"):
            families.read(theirs["nllb"])
    (theirs["nllb"] / "shared_vocabulary.json").unlink()
    with pytest.raises(BadFile, match=r"has model\.bin and no shared_vocabulary\.json beside it"):
        Translator(theirs["nllb"])


# -- NLLB's tokenizer without SentencePiece's file --------------------------------------------------------


def test_a_tokenizer_json_stands_for_sentencepieces_file(tmp_path: Path) -> None:
    folder = random_models.nllb(tmp_path / "nllb")
    before = Tokenizer(folder)
    texts = ["the red house", "  two  dogs", "é🙂🙂ü x", "the the", "x" * 30]
    wanted = [before.segment(text, "en", "fr") for text in texts]
    vocabularies = before.vocabularies(300, 300)
    random_models.with_tokenizer_json(folder)
    after = Tokenizer(folder)
    assert [after.segment(text, "en", "fr") for text in texts] == wanted
    assert after.vocabularies(300, 300) == vocabularies
    assert [after.text(one.tokens) for one in wanted] == [before.text(one.tokens) for one in wanted]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"type": "Unigram"}}, "its model is Unigram"),
        ({"normalizer": {"type": "NFKC"}}, "it normalizes by NFKC"),
        ({"model": {"type": "BPE", "vocab": {"a": 5}, "merges": [["a"]]}}, "not enough values"),
        ({"model": {"type": "BPE", "vocab": {"\ud800": 5}, "merges": []}}, "surrogates"),
        ({"added_tokens": None}, "NoneType"),
    ],
)
def test_one_that_cannot_is_said_with_what_to_do(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    folder = random_models.with_tokenizer_json(random_models.nllb(tmp_path / "nllb"))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadFile, match=rf"cannot stand for that \(.*{said}.*copy the sentencepiece.bpe.model"):
        Tokenizer(folder)


@pytest.mark.parametrize("number", [10**12, -1, "x", None])
def test_tokens_that_are_added_at_no_number(tmp_path: Path, number: object) -> None:
    folder = random_models.with_tokenizer_json(random_models.nllb(tmp_path / "nllb"))
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer(folder)
    added = {"added_tokens": [{"content": "a", "id": number}]}
    path.write_text(json.dumps(json.loads(path.read_text()) | added))
    with pytest.raises(BadFile, match="does not say what it adds"):
        tokenizer.vocabularies(300, 300)
