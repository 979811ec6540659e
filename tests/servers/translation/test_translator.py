from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

from modelyard.errors import BadFile, CannotLoad, InvalidRequest, NoMemory, ShuttingDown
from modelyard.servers.translation.backends import Backend, Broken, OutOfMemory, Output, Segment
from modelyard.servers.translation.translator import Translator, batched
from servers.translation import random_models

TEXT = "A red house. A cat likes two dogs!\n\n  a cat\tis old.  "


@pytest.fixture
def translator(converted: dict[str, Path]) -> Iterator[Translator]:
    with Translator(converted["m2m100"], "cpu", "float32", beam_size=1) as one:
        one._backend = one_thread(converted["m2m100"])
        yield one


def one_thread(folder: Path) -> Backend:
    """The cores are shared with other tests."""
    from modelyard.servers.translation.ctranslate2_backend import CTranslate2Backend

    return CTranslate2Backend(folder, dtype="float32", threads=1)


def test_what_stands_between_sentences_stays(translator: Translator) -> None:
    found = translator.translate(TEXT, "en", "fr")
    parts = [
        translator.translate(one, "en", "fr")
        for one in ("A red house.", "A cat likes two dogs!", "a cat", "is old.")
    ]
    assert found == f"{parts[0]} {parts[1]}\n\n  {parts[2]}\t{parts[3]}  "
    assert any(parts)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "…", "🙂", "\0", " \x07\x1b "])
def test_where_there_is_nothing_to_translate_it_stays(translator: Translator, text: str) -> None:
    assert translator.translate(text, "en", "fr") == text


def test_control_characters_stay_where_they_are(translator: Translator) -> None:
    house, dogs = translator.batch(["the red house", "two dogs"], "en", "fr")
    assert translator.translate("the red house\0two dogs\x1b", "en", "fr") == f"{house}\0{dogs}\x1b"


def test_one_code_for_all_or_one_each(translator: Translator) -> None:
    texts = ["the red house", "two dogs", "a cat"]
    each = translator.batch(texts, ["en", "de", "en"], ["fr", "es", "de"])
    assert each == [
        translator.translate(*one) for one in zip(texts, ("en", "de", "en"), ("fr", "es", "de"), strict=True)
    ]
    assert translator.batch(texts, "en", ["fr", "fr", "fr"]) == translator.batch(texts, "en", "fr")
    assert translator.batch([], "en", "fr") == []
    assert translator.batch(texts, "en", "en") == texts


@pytest.mark.parametrize("codes", [["en"], ["en", "en", "en"], []])
def test_codes_that_are_not_as_many_as_the_texts(translator: Translator, codes: list[str]) -> None:
    with pytest.raises(
        InvalidRequest, match=f"source: {len(codes)} codes for 2 texts; give one for all"
    ) as told:
        translator.batch(["a", "b"], codes, "fr")
    assert told.value.param == "source"
    with pytest.raises(InvalidRequest, match="target: "):
        translator.batch(["a", "b"], "en", codes)


def test_languages_are_those_of_the_family(translator: Translator) -> None:
    assert len(translator.languages) == 100
    assert {"en", "fr", "zh", "no", "nso"} <= set(translator.languages)
    assert len(translator.pairs) == 100 * 99


@pytest.mark.parametrize(
    ("said", "code"), [("zh-CN", "zh"), ("pt_BR", "pt"), ("ENG", "en"), ("fra_Latn", "fr")]
)
def test_codes_as_others_write_them(translator: Translator, said: str, code: str) -> None:
    assert translator.translate("a red house", "de", said) == translator.translate("a red house", "de", code)


def test_a_language_that_it_lacks(translator: Translator) -> None:
    with pytest.raises(
        InvalidRequest, match="source: 'englsh' is no language of this model; did you mean en"
    ) as told:
        translator.translate("a", "englsh", "fr")
    assert told.value.param == "source"
    with pytest.raises(InvalidRequest, match=r"It has af, am, .* and 88 more"):
        translator.translate("a", "en", "qqq")


def test_a_pair_that_it_lacks(converted: dict[str, Path]) -> None:
    with Translator(converted["marian"], "cpu") as one:
        assert one.languages == ("en", "fr")
        assert one.pairs == (("en", "fr"),)
        with pytest.raises(InvalidRequest, match="target: fr-en is no pair of this model; it has en-fr"):
            one.translate("a", "fr", "en")


def test_texts_that_are_none(translator: Translator) -> None:
    with pytest.raises(InvalidRequest, match="half a character"):
        translator.translate("a \ud800", "en", "fr")
    with pytest.raises(InvalidRequest, match="one text is no list of texts"):
        translator.batch("a red house", "en", "fr")
    with pytest.raises(InvalidRequest, match="None is no text"):
        translator.batch([None], "en", "fr")  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="b'a' is no text"):
        translator.translate(b"a", "en", "fr")  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", [None, 3, b"a", {"a": "b"}])
def test_texts_that_are_no_list(translator: Translator, texts: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^texts: .* cannot be one; give a list of texts") as told:
        translator.batch(texts, "en", "fr")
    assert told.value.param == "texts"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "None cannot be one; give the code of a language, such as en, or a list"),
        (1, "1 cannot be one; give the code"),
        ([None, "en"], "None is no language of this model"),
        ([["en"], "en"], "['en'] is no language of this model"),
        ("", "'' is no language of this model"),
    ],
)
def test_codes_that_are_none(translator: Translator, code: Any, said: str) -> None:
    for name, codes in (("source", (code, "fr")), ("target", ("en", code))):
        with pytest.raises(InvalidRequest) as told:
            translator.batch(["a", "b"], *codes)
        assert said in told.value.message
        assert told.value.param == name


def test_texts_may_come_one_by_one(translator: Translator) -> None:
    texts = ("the red house", "two dogs")
    assert translator.batch((text for text in texts), "en", "fr") == translator.batch(texts, "en", "fr")  # type: ignore[arg-type]


def test_a_model_without_host_memory_has_to_be_opened_again(converted: dict[str, Path]) -> None:
    class Full:
        def translate_batch(self, *args: object, **more: object) -> None:
            raise RuntimeError("mkl_malloc: failed to allocate memory")

    with Translator(converted["marian"], "cpu") as one:
        assert one._backend is not None
        one._backend._model = Full()  # type: ignore[attr-defined]
        for _ in range(2):
            with pytest.raises(NoMemory, match=r"out of memory: mkl_malloc.*open it again, with more memory"):
                one.batch(["a red house", "two dogs"], "en", "fr")
            one._backend._model = object()  # type: ignore[attr-defined] # which is not asked any more


def test_a_very_long_text_is_cut_and_joined(translator: Translator) -> None:
    text = "a small red house is not old " * 300
    found = translator.translate(text, "en", "fr")
    plan_lengths: list[int] = []
    backend = translator._backend
    assert backend is not None

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

        def run(self, batch: Sequence[Segment], **more: int) -> list[Output]:
            plan_lengths.extend(map(len, batch))
            assert backend is not None
            return backend.run(batch, **more)

    translator._backend = Watched()  # type: ignore[assignment]
    assert translator.translate(text, "en", "fr") == found
    assert max(plan_lengths) <= backend.longest
    assert sum(plan_lengths) > 2000
    assert found.endswith(" ")


def test_once_closed_it_translates_nothing(converted: dict[str, Path]) -> None:
    with Translator(converted["marian"], "cpu") as one:
        assert one.translate("a", "en", "fr") is not None
    one.close()
    with pytest.raises(ShuttingDown, match="closed; make a new one"):
        one.translate("a", "en", "fr")
    with pytest.raises(ShuttingDown):
        _ = one.languages


def test_threads_share_it(translator: Translator) -> None:
    wanted = translator.translate(TEXT, "en", "fr")
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: translator.translate(TEXT, "en", "fr"), range(8))) == [wanted] * 8


# -- batches ---------------------------------------------------------------------------------------------


class Scarce:
    """A back end whose device has memory for so many tokens at once, padding included."""

    device, replicas, longest = "cpu", 1, 100
    languages = ("en", "fr")
    pairs = (("en", "fr"),)

    def __init__(self, room: int) -> None:
        self.room = room
        self.ran: list[int] = []
        self.refused = 0

    def segment(self, text: str, source: str, target: str) -> Segment:
        return Segment(source, target, (*text.split(), "</s>"))

    def run(self, batch: Sequence[Segment], **more: int) -> list[Output]:
        tokens = max(map(len, batch)) * len(batch)
        if tokens > self.room:
            self.refused += 1
            raise OutOfMemory(f"{tokens} tokens")
        self.ran.append(tokens)
        return [Output(" ".join(reversed(one.tokens[:-1])), len(one)) for one in batch]

    def close(self) -> None:
        pass


def scarce(converted: dict[str, Path], room: int, batch_tokens: int) -> tuple[Translator, Scarce]:
    translator = Translator(converted["marian"], "cpu", batch_tokens=batch_tokens)
    translator._backend = backend = Scarce(room)
    return translator, backend


def test_a_batch_without_memory_is_halved_and_finished(converted: dict[str, Path]) -> None:
    translator, backend = scarce(converted, room=20, batch_tokens=1000)
    texts = [f"a b{number} c d" for number in range(30)]
    assert translator.batch(texts, "en", "fr") == [f"d c b{number} a" for number in range(30)]
    assert backend.refused > 0
    assert max(backend.ran) <= 20


def test_one_segment_that_is_too_much_is_said(converted: dict[str, Path]) -> None:
    translator, _ = scarce(converted, room=3, batch_tokens=1000)
    with pytest.raises(NoMemory, match="cpu has no memory for one segment of 5 tokens"):
        translator.batch(["a b c d"], "en", "fr")


def test_batches_are_bounded_and_of_like_lengths(converted: dict[str, Path]) -> None:
    translator, backend = scarce(converted, room=1000, batch_tokens=50)
    texts = ["a " * (1 + number * 7 % 20) for number in range(40)]
    assert translator.batch(texts, "en", "fr") == [" ".join(text.split()) + " " for text in texts]
    assert max(backend.ran) <= 50
    assert sum(backend.ran) < 1.2 * sum(len(text.split()) + 1 for text in texts)


class Together(Scarce):
    """Its two replicas compute at the same time, or not at all."""

    replicas = 2

    def __init__(self) -> None:
        super().__init__(1000)
        self.both = Barrier(2)

    def run(self, batch: Sequence[Segment], **more: int) -> list[Output]:
        self.both.wait(10)
        return super().run(batch, **more)


def test_replicas_compute_at_the_same_time(converted: dict[str, Path]) -> None:
    translator, _ = scarce(converted, room=0, batch_tokens=1000)
    translator._backend = backend = Together()
    assert translator.batch(["a b", "c d"], "en", "fr") == ["b a", "d c"]
    assert backend.ran == [3, 3]


class BrokenInOne(Together):
    """One of its replicas breaks while the other computes until it is told to end."""

    def __init__(self) -> None:
        super().__init__()
        self.end = Event()
        self.ended = False

    def run(self, batch: Sequence[Segment], **more: int) -> list[Output]:
        self.both.wait(10)
        if batch[0].tokens[0] == "breaks":
            raise Broken("out of memory")
        self.end.wait(10)
        self.ended = True
        return []


def test_what_is_broken_waits_for_nothing(converted: dict[str, Path]) -> None:
    translator, _ = scarce(converted, room=0, batch_tokens=1000)
    translator._backend = backend = BrokenInOne()
    with pytest.raises(NoMemory, match="open it again"):
        translator.batch(["breaks b", "c d"], "en", "fr")
    assert not backend.ended
    backend.end.set()


def test_one_that_is_longer_than_a_batch_is_one_of_its_own() -> None:
    assert list(batched([3, 90, 4], 10)) == [[1], [2, 0]]
    assert list(batched([], 10)) == []


# -- loading ---------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"has no config\.json; name a folder with a whole model"):
        Translator(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadFile, match="it is a llama; what translates is of type m2m_100"):
        Translator(tmp_path)
    folder = random_models.m2m100(tmp_path / "whole")
    (folder / "sentencepiece.bpe.model").unlink()
    with pytest.raises(BadFile, match=r"lacks sentencepiece\.bpe\.model, a part of its tokenizer"):
        Translator(folder)


def test_a_device_that_is_not_there(converted: dict[str, Path]) -> None:
    with pytest.raises(CannotLoad, match="there is no device 'cuda:9' here"):
        Translator(converted["marian"], "cuda:9")


@pytest.mark.parametrize("wrong", [{"batch_tokens": 0}, {"beam_size": 0}, {"engine": "marian"}])
def test_settings_that_cannot_be(converted: dict[str, Path], wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        Translator(converted["marian"], "cpu", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "library", "extra"),
    [("ctranslate2", "ctranslate2", "translation"), ("transformers", "torch", "transformers,translation")],
)
def test_an_engine_that_is_not_installed(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, engine: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"modelyard.servers.translation.{engine}_backend", raising=False)
    with pytest.raises(CannotLoad, match=rf"pip install 'modelyard\[{extra}\]'"):
        Translator(models["marian"], engine=engine)


def test_nothing_heavy_is_imported_before_a_model_is_opened() -> None:
    code = (
        "import sys, modelyard; from modelyard.servers.translation import translator, families;"
        "print([n for n in ('numpy', 'torch', 'ctranslate2', 'sentencepiece') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.strip() == "[]"
