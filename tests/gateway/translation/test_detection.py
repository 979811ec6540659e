# ruff: noqa: RUF001 - texts of many languages
"""Which language a text is in: by its script first, then by its letters and a few words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.live_yard import live_yard
from gateway.translation.translators import ask, refused, translated, translator
from modelyard.gateway.translation.detection import Guess, detect, detect_each
from modelyard.gateway.translation.scripts import fits, script_of

TEXTS = {
    "ar": ("الطقس جميل جدا اليوم ونحن نخرج.", "صباح الخير", "مرحبا"),
    "de": ("Das Wetter ist heute sehr schön, und wir gehen hinaus.", "Wo ist der Bahnhof?", "Hallo"),
    "el": ("Ο καιρός είναι πολύ καλός σήμερα.", "Πού είναι ο σταθμός;", "Καλημέρα"),
    "en": ("The weather is very nice today, and we go out.", "Where is the station?", "Hello"),
    "es": ("Hoy hace muy buen tiempo y salimos a la calle.", "¿Dónde está la estación?", "Hola"),
    "fr": ("Il fait très beau aujourd'hui, et nous sortons.", "Où est la gare ?", "Bonjour"),
    "he": ("מזג האוויר יפה מאוד היום ואנחנו יוצאים.", "איפה התחנה?", "שלום"),
    "hi": ("आज मौसम बहुत अच्छा है और हम बाहर जाते हैं।", "स्टेशन कहाँ है?", "नमस्ते"),
    "it": ("Oggi il tempo è molto bello e usciamo.", "Dov'è la stazione?", "Ciao"),
    "ja": ("今日はとてもいい天気なので出かけます。", "駅はどこですか?", "水です"),
    "ko": ("오늘은 날씨가 아주 좋아서 밖에 나갑니다.", "역이 어디예요?", "안녕"),
    "pt": ("Hoje o tempo está muito bom e nós saímos.", "Onde fica a estação?", "Olá"),
    "ru": ("Сегодня очень хорошая погода, и мы идём гулять.", "Где вокзал?", "Привет"),
    "th": ("วันนี้อากาศดีมากและเราออกไปข้างนอก", "สถานีอยู่ที่ไหน", "สวัสดี"),
    "tr": ("Bugün hava çok güzel ve dışarı çıkıyoruz.", "İstasyon nerede?", "Merhaba"),
    "uk": ("Сьогодні дуже гарна погода, і ми йдемо гуляти.", "Де вокзал?", "Привіт"),
    "zh": ("今天天气很好，我们出去散步。", "车站在哪里？", "你好"),
}
SOME = frozenset({"de", "en", "es", "fr"})
CASES = [(code, text) for code, texts in TEXTS.items() for text in texts]


@pytest.mark.parametrize(("code", "text"), CASES)
async def test_a_text_is_in_its_language_however_short_it_is(code: str, text: str) -> None:
    found = await detect(text, frozenset(TEXTS))
    assert found[0].language == code, found
    assert 0 < found[0].confidence <= 100


@pytest.mark.parametrize(("code", "text"), CASES)
async def test_no_language_is_told_that_its_script_excludes(code: str, text: str) -> None:
    script = script_of(text)
    found = await detect(text, SOME)
    assert all(fits(guess.language, script) for guess in found)
    if script != "LATIN":  # nobody here translates it: then what it is indeed
        assert found[0].language == code, found


@given(st.text(), st.sets(st.sampled_from([*TEXTS, "zh-Hant", "ace-Arab", "srp_Cyrl", "pt-BR", "bo"])))
async def test_whatever_a_text_is_its_script_holds(text: str, known: set[str]) -> None:
    script = script_of(text)
    for guess in await detect(text, frozenset(known)):
        assert fits(guess.language, script)
        assert 0 <= guess.confidence <= 100


async def test_how_unsure_it_is_is_told() -> None:
    sure, short = await detect("The weather is very nice today.", SOME), await detect("Hello", SOME)
    assert sure[0].confidence > 90
    assert short[0].confidence < 50
    # What it is most likely in is not among those here: nothing is sure about the first of those.
    assert (await detect("Oggi il tempo è molto bello e usciamo.", SOME))[0].confidence < 5
    many = await detect("Сегодня очень хорошая погода", frozenset({"bg"}))
    assert many == [Guess("bg", many[0].confidence)]
    assert many[0].confidence < 20


async def test_codes_are_those_of_the_models_here() -> None:
    for known, text, code in (
        ({"zh-Hans", "en", "pt-BR"}, "今天天气很好", "zh-Hans"),
        ({"zh-Hant", "en", "pt-BR"}, "Olá", "pt-BR"),
        ({"bo", "en"}, "བཀྲ་ཤིས་བདེ་ལེགས།", "bo"),
        ({"arz", "ar", "en"}, "الطقس جميل جدا اليوم ونحن نخرج.", "ar"),
    ):
        assert (await detect(text, frozenset(known)))[0].language == code


async def test_what_has_no_letter_of_a_known_script_is_in_nothing() -> None:
    for text in ("", "12 34", "…", "ᚠᚢᚦ", "\x00"):
        assert await detect(text, frozenset(TEXTS)) == []


async def test_a_script_that_the_detector_does_not_know_tells_the_language_alone() -> None:
    for text, code in (("ⴰⵣⵓⵍ", "tzm"), ("ꯍꯥꯌ", "mni")):
        (first, *_) = await detect(text, SOME)
        assert (first.language, 0 < first.confidence <= 100) == (code, True)


async def test_short_texts_of_a_list_are_judged_with_those_of_their_script() -> None:
    texts = [
        "Guten Tag",
        "你好",
        "Tag",
        "Привет",
        "12",
        "Das Wetter ist heute sehr schön, und wir gehen hinaus.",
    ]
    found = await detect_each(texts, frozenset(TEXTS))
    assert [guess and guess.language for guess in found] == ["de", "zh", "de", "ru", None, "de"]


async def test_short_texts_that_say_enough_are_judged_alone() -> None:
    texts = ["The horse is in the town.", "Le cheval est dans la ville.", "Die Tanten sind im Hotel."]
    found = await detect_each(texts, SOME)
    assert [guess and guess.language for guess in found] == ["en", "fr", "de"]


async def test_texts_of_requests_go_from_the_language_that_they_are_in() -> None:
    async with live_yard({"m": translator("zh-fr", "en-fr", "de-fr")}) as yard:
        said = await translated(yard, ["你好", "Hello", "今天天气很好，我们出去散步。"], "auto")
        assert said["pair"] == ["zh-fr", "en-fr", "zh-fr"]
        assert said["translatedText"][0] == "[fr] 你好"
        page = '<p class="a very long name of a class">你好</p>'  # tags are no text
        assert (await translated(yard, page, "auto", format="html"))["pair"] == "zh-fr"
        # What nobody translates is refused by its name, not translated from another language.
        answer = await ask(yard, "오늘은 날씨가 아주 좋습니다", "auto")
        assert refused(answer)[:2] == (400, "unsupported_language")
        assert "Korean (ko) to French" in answer.json()["error"]
        partly = await translated(yard, ["오늘", "Hello"], "auto", partial=True)
        assert partly["translatedText"] == [None, "[fr] Hello"]
        told = await yard.http.post("/detect", json={"q": "오늘은 날씨가"})
        assert told.json() == [{"language": "ko", "confidence": 100.0}]
