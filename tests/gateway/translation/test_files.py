"""Documents are translated, and fetched as LibreTranslate's clients do."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest

from gateway.live_yard import LiveYard, live_yard
from gateway.translation.test_keys import KEYS, SECRET
from gateway.translation.translators import refused, translator
from modelyard.errors import BodyTooLarge, NotFound
from modelyard.gateway.translation import files as kept
from modelyard.gateway.translation.files import Files

MODELS = {"ef": translator("en-fr")}
ASKED = {"source": "en", "target": "fr"}
SRT = (
    "1\r\n00:00:01,000 --> 00:00:02,500\r\none <i>two</i>\r\n3 pigs\r\n\r\n"
    "2\r\n00:00:03,000 --> 00:00:04,000\r\nthree\r\n"
)
SRT_THEN = (
    SRT.replace("one <i>two", "[fr] one <i>[fr] two")
    .replace("3 pigs", "[fr] 3 pigs")
    .replace("three", "[fr] three")
)


async def send(yard: LiveYard, name: str, data: bytes, **fields: str) -> httpx.Response:
    return await yard.http.post("/translate_file", data={**ASKED, **fields}, files={"file": (name, data)})


async def fetched(yard: LiveYard, answer: httpx.Response) -> httpx.Response:
    assert answer.status_code == 200, answer.text
    url = urlsplit(answer.json()["translatedFileUrl"])
    assert (url.scheme, url.netloc) == ("http", "localhost")
    return await yard.http.get(url.path)


async def test_each_kind_keeps_its_markup() -> None:
    documents = {
        "a.txt": ("one\n\n  two \n", "[fr] one\n\n  [fr] two \n"),
        "a.srt": (SRT, SRT_THEN),
        "a.HTML": ("<p>one<br>two", "<p>[fr] one<br>[fr] two"),
        "a.md": (
            "# one\n\n```\ncode\n```\n- [two](http://x/y)\n",
            "# [fr] one\n\n```\ncode\n```\n- [[fr] two](http://x/y)\n",
        ),
    }
    async with live_yard(MODELS, keys=KEYS) as yard:
        for name, (text, right) in documents.items():
            answer = await send(yard, name, text.encode(), api_key=SECRET)
            file = await fetched(yard, answer)  # without a key
            assert file.content.decode() == right, name
            saved = name.replace(".", "_fr.")
            assert file.headers["content-disposition"] == f'attachment; filename="{saved}"'
            assert file.headers["content-type"] == "application/octet-stream"
            assert file.headers["x-content-type-options"] == "nosniff"
            assert answer.json()["model"] == "ef"


async def test_what_is_no_document_is_refused() -> None:
    async with live_yard(MODELS, translation={"max_chars": 100}) as yard:
        for answer, param, said in (
            (await send(yard, "a.docx", b"one"), "file", ".docx; there are .txt"),
            (await send(yard, "a", b"one"), "file", "without an ending"),
            (await send(yard, "a.txt", b"\xff\xfe"), "file", "not UTF-8"),
            (await send(yard, "a.txt", b"a" * 101), "file", "101 characters"),
            (await send(yard, "a.html", b"<a>" * 400), "file", "1,200 bytes large; 1,000"),
            (await send(yard, "a.txt", b"a", target=""), "target", "missing"),
            (await yard.http.post("/translate_file", data=ASKED), "file", "missing"),
            (await yard.http.post("/translate_file", json=ASKED), "file", "missing"),
        ):
            assert refused(answer) == (400, "invalid_request", param)
            assert said in answer.json()["error"]
        unknown = await send(yard, "a.txt", b"a", target="xx")
        assert refused(unknown) == (400, "unsupported_language", "target")
        assert (await yard.http.get("/download_file/nothing.txt")).json()["code"] == "not_found"


async def test_behind_a_proxy_with_tls_the_address_is_one_of_tls() -> None:
    async with live_yard(MODELS) as yard:
        answer = await yard.http.post(
            "/translate_file",
            data=ASKED,
            files={"file": ("a.txt", b"one")},
            headers={"x-forwarded-proto": "https"},
        )
        assert answer.json()["translatedFileUrl"].startswith("https://localhost/download_file/")


async def test_the_language_of_a_document_is_detected() -> None:
    async with live_yard(MODELS) as yard:
        text = b"The weather is very nice today,\nand so we go out with the children."
        answer = await send(yard, "\u00e9 a/../b.txt", text, source="auto")
        assert answer.json()["detectedLanguage"]["language"] == "en"
        file = await fetched(yard, answer)
        assert file.text.startswith("[fr] The weather is very nice today,\n[fr] and")
        assert file.headers["content-disposition"].endswith('b_fr.txt"')


class TestKept:
    def test_for_a_while(self) -> None:
        now = 0.0
        files = Files(lambda: now)
        key = files.put("a b\u00e9.txt", b"x")
        assert files.get(key) == ("a_b_.txt", b"x")
        now = kept.KEPT_FOR
        with pytest.raises(NotFound):
            files.get(key)

    def test_within_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kept, "KEPT", 10)
        files = Files()
        keys = [files.put("a.txt", b"1234") for _ in range(3)]
        with pytest.raises(NotFound):
            files.get(keys[0])
        assert [files.get(key)[1] for key in keys[1:]] == [b"1234"] * 2
        with pytest.raises(BodyTooLarge):
            files.put("a.txt", b"x" * 11)
        assert files.get(keys[2])[1] == b"1234"
