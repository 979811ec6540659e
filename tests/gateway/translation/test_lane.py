"""Translations by LibreTranslate's API, over processes of the fake engine."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.live_yard import LiveYard, fake, live_yard
from gateway.test_inference import metrics_of
from gateway.translation.translators import ask, refused, translated, translator
from modelyard.gateway.translation import detection

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODELS = {
    "ef": translator("en-fr", "fr-en", "en-pt_BR"),
    "fd": translator("fr-de"),
    "talk": fake(memory=1_000_000),
}
LIMITS = {"max_texts": 5, "max_chars": 200}
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard() -> AsyncIterator[LiveYard]:
    async with live_yard(MODELS, memory=20_000_000, translation=LIMITS) as yard:
        yield yard


class TestLibreTranslatesShape:
    async def test_one_text_is_answered_with_one(self, yard: LiveYard) -> None:
        answer = await ask(yard, "one two")
        assert answer.status_code == 200
        assert answer.json() == {
            "translatedText": "[fr] one two",
            "pair": "en-fr",
            "model": "ef",
            "route": "direct",
            "pivot": None,
            "usage": {"segments": 1, "input_tokens": 2, "output_tokens": 2},
        }
        assert answer.headers["x-modelyard-instance"] == "ef-1"
        assert answer.headers["x-modelyard-request"]

    async def test_a_list_is_answered_with_a_list(self, yard: LiveYard) -> None:
        said = await translated(yard, ["one", "", "two\nthree "])
        assert said["translatedText"] == ["[fr] one", "", "[fr] two\nthree "]
        assert (said["model"], said["pair"]) == ([None if i == 1 else "ef" for i in range(3)], "en-fr")
        for source in ("en", "auto"):
            assert (await translated(yard, [], source))["translatedText"] == []

    async def test_both_paths_and_our_names_are_the_same(self, yard: LiveYard) -> None:
        for path, body in (
            ("/translation", {"q": "one", "source": "en", "target": "fr"}),
            ("/translate", {"text": "one", "source": "en", "target": "fr", "secret": "x", "unknown": 1}),
            ("/translate", {"text": "one", "pair": "en-fr"}),
            ("/v1/models/ef/predict", {"q": "one", "source": "en", "target": "fr"}),
            ("/v1/models/ef/predict", {"text": "one", "pair": "en-fr", "model": "ef"}),
        ):
            answer = await yard.http.post(path, json=body)
            assert answer.json()["translatedText"] == "[fr] one", (path, body)
        many = await yard.http.post("/translate", json={"texts": ["one"], "pair": "en-fr"})
        assert many.json()["translatedText"] == ["[fr] one"]

    async def test_forms_are_taken_as_json_is(self, yard: LiveYard) -> None:
        said = await yard.http.post(
            "/translate", data={"q": "on\u00e9 & two", "source": "en", "target": "fr"}
        )
        assert said.json()["translatedText"] == "[fr] on\u00e9 & two"
        both = await yard.http.post("/translate", data={"q": ["one", "two"], "source": "en", "target": "fr"})
        assert both.json()["translatedText"] == ["[fr] one", "[fr] two"]
        fields = {"q": (None, "one\r\ntwo"), "source": (None, "en"), "target": (None, "fr")}
        parts = await yard.http.post("/translate", files=fields)
        assert parts.json()["translatedText"] == "[fr] one\ntwo"
        # What `curl -d` calls a form.
        body = json.dumps({"q": "one", "source": "en", "target": "fr"}).encode()
        assert (await yard.http.post("/translate", content=body, headers=FORM)).status_code == 200

    async def test_alternatives_stand_beside(self, yard: LiveYard) -> None:
        assert (await translated(yard, "one", alternatives=2))["alternatives"] == [
            "[fr] one (2)",
            "[fr] one (3)",
        ]
        many = await translated(yard, ["one", "a b"], alternatives=1)
        assert many["alternatives"] == [["[fr] one (2)"], ["[fr] a b (2)"]]
        parts = await translated(yard, "<p>one<b>two", format="html", alternatives=1)
        assert parts["alternatives"] == []

    async def test_html_keeps_its_markup(self, yard: LiveYard) -> None:
        page = "<p title='a>b'>{}one &amp; <b>{}two</b>&nbsp;<script>if (a < b) three()</script><i>{}four"
        said = await translated(yard, page.replace("{}", ""), format="html")
        assert said["translatedText"] == page.replace("{}", "[fr] ")

    async def test_terms_of_a_glossary_stand(self, yard: LiveYard) -> None:
        said = await translated(yard, "one Big Apple two", glossary={"Big Apple": "New York"})
        assert said["translatedText"] == "[fr] one New York [fr] two"

    async def test_empty_texts_and_the_language_itself_ask_nobody(self, yard: LiveYard) -> None:
        before = yard.instances("fd")
        for q in ("", "  \n ", "...", ["", " "]):
            assert (await translated(yard, q, "fr", "de"))["translatedText"] == q
        assert (await translated(yard, "one", "fr", "fr"))["translatedText"] == "one"
        assert yard.instances("fd") == before == []

    async def test_control_characters_stay_and_reach_no_model(self, yard: LiveYard) -> None:
        said = await translated(yard, ["one\x00\x1b two\x7f", "\x01\u2028"])
        assert said["translatedText"] == ["[fr] one\x00\x1b [fr] two\x7f", "\x01\u2028"]

    async def test_codes_are_understood_as_people_write_them(self, yard: LiveYard) -> None:
        for source, target in (("en", "pt"), ("EN", "pt_BR"), ("en-US", "pt-br")):
            said = await translated(yard, "one", source, target)
            assert (said["translatedText"], said["pair"]) == ("[pt-BR] one", "en-pt_BR")

    async def test_it_counts_as_requests_of_the_model(self, yard: LiveYard) -> None:
        name = "modelyard_requests_total"
        before = await metrics_of(yard)
        await translated(yard, "one two three")
        await ask(yard, "one", "en", "xx")
        after = await metrics_of(yard)
        grown = {
            labels: after[key] - before.get(key, 0.0)
            for key in after
            if (labels := key[1]) and key[0] == name
        }
        assert {labels: count for labels, count in grown.items() if count} == {
            ("ef", "ok", "translation"): 1.0,
            ("", "unsupported_language", "translation"): 1.0,
        }


class TestDetection:
    async def test_auto_says_what_it_found(self, yard: LiveYard) -> None:
        text = "The weather is very nice today, and we go out."
        said = await translated(yard, text, "auto")
        assert said["translatedText"] == f"[fr] {text}"
        assert said["detectedLanguage"]["language"] == "en"
        assert 50 < said["detectedLanguage"]["confidence"] <= 100
        left_out = await yard.http.post("/translate", json={"q": text, "target": "fr"})
        assert left_out.json()["pair"] == "en-fr"

    async def test_each_text_of_a_list_has_its_own(self, yard: LiveYard) -> None:
        texts = [
            "The weather is very nice today, and we go out.",
            "Il fait tr\u00e8s beau aujourd'hui, et nous sortons avec les enfants.",
        ]
        said = await translated(yard, texts, "auto", "fr")
        assert said["translatedText"] == [f"[fr] {texts[0]}", texts[1]]
        assert [one["language"] for one in said["detectedLanguage"]] == ["en", "fr"]
        assert said["pair"] == ["en-fr", "fr-fr"]

    async def test_what_says_nothing_stays(self, yard: LiveYard) -> None:
        said = await translated(yard, "12 34", "auto")
        assert said["translatedText"] == "12 34"
        assert said["detectedLanguage"] == {"language": "en", "confidence": 0.0}

    async def test_without_a_detector_the_language_has_to_be_said(
        self, yard: LiveYard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        detection._identifier.cache_clear()
        monkeypatch.setitem(sys.modules, "py3langid.langid", None)
        answer = await ask(yard, "one two three", "auto")
        assert refused(answer) == (501, "not_supported", "source")
        assert "pip install 'modelyard[translation]'" in answer.json()["error"]
        assert (await translated(yard, "one"))["translatedText"] == "[fr] one"

    async def test_detect_answers_as_libretranslate_does(self, yard: LiveYard) -> None:
        text = "Il fait tr\u00e8s beau aujourd'hui."
        for answer in (
            await yard.http.post("/detect", json={"q": text}),
            await yard.http.post("/detect", data={"q": text}),
        ):
            first = answer.json()[0]
            assert first["language"] == "fr"
            assert set(first) == {"language", "confidence"}
        assert (await yard.http.post("/detect", json={"q": "12"})).json() == [
            {"language": "en", "confidence": 0.0}
        ]
        assert refused(await yard.http.post("/detect", json={})) == (400, "invalid_request", "q")


class TestBadInput:
    @pytest.mark.parametrize(
        ("fields", "code", "param", "said"),
        [
            ({"q": None}, "invalid_request", "q", "missing"),
            ({"q": 3}, "invalid_request", "q", "text or a list"),
            ({"q": ["a", 3]}, "invalid_request", "q[1]", "has to be a text"),
            ({"q": "a", "text": "b"}, "invalid_request", "text", "beside `q`"),
            ({"target": None}, "invalid_request", "target", "missing"),
            (
                {"target": "de"},
                "unsupported_language",
                "target",
                "Nothing here translates English (en) to German",
            ),
            ({"target": "xx"}, "unsupported_language", "target", "There are de, en, fr, pt-BR."),
            ({"target": "fn"}, "unsupported_language", "target", "Did you mean"),
            ({"target": "f r"}, "unsupported_language", "target", "not a language's code"),
            ({"source": "english"}, "unsupported_language", "source", "There are en, fr."),
            ({"source": "x" * 5000}, "unsupported_language", "source", "\u2026"),
            ({"source": "de"}, "unsupported_language", "source", "not translated here"),
            ({"format": "xml"}, "invalid_request", "format", "text or html"),
            ({"alternatives": -1}, "invalid_request", "alternatives", "from 0"),
            ({"alternatives": 1000}, "invalid_request", "alternatives", "at most 10"),
            ({"glossary": ["a"]}, "invalid_request", "glossary", "object"),
            ({"glossary": {"a": 1}}, "invalid_request", "glossary", "texts to texts"),
            ({"glossary": {"a": "x" * 201}}, "invalid_request", "glossary", "200 characters"),
            ({"pivot": ""}, "invalid_request", "pivot", "language's code"),
            ({"pivot": "e" * 300}, "invalid_request", "pivot", "language's code"),
            ({"pivot": 3}, "invalid_request", "pivot", "code"),
            ({"pair": "en-fr"}, "invalid_request", "pair", "stands instead"),
            ({"q": ["a"] * 6}, "invalid_request", "q", "6 texts; 5 are the most"),
            ({"q": "a" * 201}, "invalid_request", "q", "201 characters long; 200"),
            ({"q": ["a" * 101, "b" * 100]}, "invalid_request", "q", "201 characters"),
            ({"model": "none"}, "model_not_found", "model", "There is no model"),
        ],
    )
    async def test_says_what_is_wrong(
        self, yard: LiveYard, fields: dict[str, object], code: str, param: str, said: str
    ) -> None:
        body = {"q": "one", "source": "en", "target": "fr", **fields}
        answer = await yard.http.post("/translate", json=body)
        status = 404 if code == "model_not_found" else 400
        assert refused(answer) == (status, code, param)
        assert said in answer.json()["error"]

    async def test_a_model_that_does_not_translate(self, yard: LiveYard) -> None:
        answer = await ask(yard, "one", model="talk")
        assert refused(answer) == (501, "not_supported", "model")
        named = await ask(yard, "one", "fr", "de", model="ef")
        assert refused(named)[:2] == (400, "unsupported_language")

    async def test_bodies_that_its_endpoint_does_not_know(self, yard: LiveYard) -> None:
        for model, body, status, said in (
            ("ef", {"q": "one"}, 400, "of ef; one of these has to be in it: `q` and `target`."),
            ("ef", {"prompt": "one"}, 501, "it serves /translate."),
        ):
            answer = await yard.http.post(f"/v1/models/{model}/predict", json=body)
            assert answer.status_code == status
            assert answer.json()["error"]["message"].endswith(said)

    @pytest.mark.parametrize(
        ("body", "content_type", "said"),
        [
            (b'{"q": "\xff", "target": "fr"}', "application/json", "not UTF-8"),
            (b'{"q": "\\ud800", "target": "fr"}', "application/json", "not valid JSON"),
            (b"[]", "application/json", "array"),
            (b"", "application/json", "empty"),
            (b"q=%ff&target=fr", "application/x-www-form-urlencoded", "`q` is not UTF-8"),
            (b"q=a&target=fr&alternatives=" + b"9" * 5000, FORM["content-type"], "at most 10"),
            (b"x", "multipart/form-data", "boundary"),
            (b"--a\r\nx", "multipart/form-data; boundary=a", "does not end"),
            (b"--a\r\n\r\nx\r\n--a--", "multipart/form-data; boundary=a", "no head"),
        ],
    )
    async def test_bodies_that_cannot_be_read(
        self, yard: LiveYard, body: bytes, content_type: str, said: str
    ) -> None:
        answer = await yard.http.post("/translate", content=body, headers={"content-type": content_type})
        assert refused(answer)[:2] == (400, "invalid_request")
        assert said in answer.json()["error"]

    async def test_a_text_that_the_model_refuses_fails_all_or_itself(self, yard: LiveYard) -> None:
        answer = await ask(yard, ["one", "BAD", "two"])
        assert refused(answer)[:2] == (400, "invalid_request")
        assert "the text is refused" in answer.json()["error"]
        partly = await translated(yard, ["one", "BAD", 3, "two"], partial=True)
        assert partly["translatedText"] == ["[fr] one", None, None, "[fr] two"]
        assert partly["errors"] == {"1": "the text is refused", "2": "has to be a text"}

    async def test_what_contradicts_itself_is_refused(self, yard: LiveYard) -> None:
        body = {"q": "one", "pair": "en-fr", "model": "fd"}
        other = (await yard.http.post("/v1/models/ef/predict", json=body)).json()["error"]
        assert (other["code"], other["param"]) == ("invalid_request", "model")
        del body["model"]
        urgent = await yard.http.post("/translate", json=body, headers={"x-priority": "now"})
        assert refused(urgent) == (400, "invalid_request", "X-Priority")

    async def test_of_texts_in_several_languages_one_may_not_be_translated(self, yard: LiveYard) -> None:
        texts = [
            "The weather is very nice today, and we go out with the children.",
            "Il fait tr\u00e8s beau aujourd'hui, et nous sortons avec les enfants.",
        ]
        whole = await ask(yard, texts, "auto", "de")
        assert refused(whole)[:2] == (400, "unsupported_language")
        partly = await translated(yard, texts, "auto", "de", partial=True)
        assert partly["translatedText"] == [None, f"[de] {texts[1]}"]
        assert "Nothing here translates English" in partly["errors"]["0"]

    async def test_other_methods_are_refused(self, yard: LiveYard) -> None:
        answer = await yard.http.get("/translate")
        assert refused(answer)[:2] == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        assert (await yard.http.post("/languages")).headers["allow"] == "GET"


class TestWhatThereIs:
    async def test_languages_with_their_models(self, yard: LiveYard) -> None:
        await translated(yard, "one")
        await yard.unload("fd")
        listed = {one["code"]: one for one in (await yard.http.get("/languages")).json()}
        assert list(listed) == ["en", "fr", "de", "pt-BR"]  # by name
        assert listed["en"] == {
            "code": "en",
            "name": "English",
            "targets": ["fr", "pt-BR"],
            "models": [{"model": "ef", "loaded": True}],
        }
        assert listed["fr"]["targets"] == ["de", "en"]
        assert listed["fr"]["models"][1] == {"model": "fd", "loaded": False}
        assert (listed["pt-BR"]["name"], listed["pt-BR"]["targets"]) == ("Portuguese (BR)", [])

    async def test_settings_of_pages(self, yard: LiveYard) -> None:
        said = (await yard.http.get("/frontend/settings")).json()
        assert (said["charLimit"], said["keyRequired"], said["filesTranslation"]) == (200, False, True)
        assert said["language"]["target"] == {"code": "en", "name": "English"}
        assert ".srt" in said["supportedFilesFormat"]


async def test_a_text_in_the_language_that_is_wanted_stays_what_it_is() -> None:
    async with live_yard({"en-fr": translator("en-fr")}) as yard:
        for code in ("en", "fr"):
            said = await translated(yard, "one", code, code)
            assert (said["translatedText"], said["model"]) == ("one", None)
        assert refused(await ask(yard, "one", "xx", "xx"))[:2] == (400, "unsupported_language")
        assert not yard.instances("en-fr")
