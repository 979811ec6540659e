"""The fake engine translates in LibreTranslate's shape, as a real process."""

from __future__ import annotations

from modelyard.servers.fake_translation import expected_translation
from servers.live import fake

SCRIPT = ("--apis", "translate", "--pairs", "en-fr,fr-de", "--refused-text", "BAD")
ASKED = {"source": "en", "target": "fr"}


async def test_texts_are_answered_in_their_order() -> None:
    async with fake(*SCRIPT) as live:
        await live.healthy()
        said = (await live.client.post("/translate", json={**ASKED, "q": ["one two", "  "]})).json()
        more = await live.client.post("/translate", json={**ASKED, "q": ["one"], "alternatives": 2})
        (listed, *_) = (await live.client.get("/languages")).json()
    assert said["translatedText"] == [expected_translation("one two", "fr"), "  "] == ["[fr] one two", "  "]
    assert said["usage"]["segments"] == 2
    assert said["usage"]["output_tokens"] > 0
    assert more.json()["alternatives"] == [["[fr] one (2)", "[fr] one (3)"]]
    assert listed == {"code": "en", "name": "en", "targets": ["fr"]}


async def test_what_it_cannot_translate_is_refused() -> None:
    async with fake(*SCRIPT) as live:
        await live.healthy()
        for body, said in (
            ({**ASKED, "q": "one"}, '"q" must be'),
            ({"q": ["one"], "source": "de", "target": "en"}, "de-en is not served"),
            ({"q": ["one"], "source": 1, "target": "en"}, '"source"'),
            ({**ASKED, "q": ["one", "BAD"]}, "q[1]: the text is refused"),
        ):
            answer = await live.client.post("/translate", json=body)
            assert answer.status_code == 400
            assert said in answer.json()["error"]["message"]
        body = {**ASKED, "q": ["one", "BAD"], "partial": True}
        partly = (await live.client.post("/translate", json=body)).json()
        assert partly["errors"] == {"1": "the text is refused"}
        assert partly["translatedText"][0] == "[fr] one"


async def test_it_takes_as_long_as_its_tokens() -> None:
    async with fake(*SCRIPT, "--tokens-per-second", "20") as live:
        await live.healthy()
        answer = await live.client.post("/translate", json={**ASKED, "q": ["a " * 8]})
        assert answer.elapsed.total_seconds() >= answer.json()["usage"]["output_tokens"] / 20
