"""Keys of translation: in a header, or in the body as LibreTranslate's clients send them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.live_yard import LiveYard, live_yard
from gateway.test_access import bearer
from gateway.translation.translators import refused, translator
from modelyard.compose import keeping
from modelyard.gateway.translation.lane import MARKUP
from modelyard.gateway.translation.strangers import FREE, TOGETHER
from waiting import until

SECRET, OTHER = "s" * 20, "o" * 20
KEYS = [
    {"name": "app", "key": SECRET, "scopes": ["inference"]},
    {"name": "boss", "key": OTHER, "scopes": ["admin"]},
]
ASKED = {"q": "one", "source": "en", "target": "fr"}
FILE = {"file": ("a.txt", b"one")}
MODELS = {"ef": translator("en-fr")}


async def every(yard: LiveYard, key: str | None, **headers: Any) -> list[httpx.Response]:
    """An answer of every path of translation, asked with this `api_key` in the body."""
    more = {} if key is None else {"api_key": key}
    asked, post = {**ASKED, **more}, yard.http.post
    return [
        await post("/translate", json=asked, headers=headers),
        await post("/translation", data=asked, headers=headers),
        await post(
            "/translate", files={name: (None, value) for name, value in asked.items()}, headers=headers
        ),
        await post("/detect", data=asked, headers=headers),
        await post("/translate_file", data=asked, files=FILE, headers=headers),
        await yard.http.request("GET", "/languages", data=more, headers=headers),
    ]


async def test_a_key_may_be_in_the_body_or_in_a_header() -> None:
    async with live_yard(MODELS, keys=KEYS) as yard:
        for answers in (await every(yard, SECRET), await every(yard, None, **bearer(SECRET))):
            assert [answer.status_code for answer in answers] == [200] * 6
        named = [await every(yard, key, **headers) for key, headers in (("x" * 20, {}), (None, {}), ("", {}))]
        for answers in named:
            assert [refused(answer)[:2] for answer in answers] == [(401, "invalid_api_key")] * 6
        assert all(answer.headers["www-authenticate"] == "Bearer" for answer in named[0])
        for answers in (await every(yard, OTHER), await every(yard, SECRET, **bearer(OTHER))):
            assert {refused(answer)[:2] for answer in answers} == {(403, "forbidden")}
        # A wrong key in the header is not made good by the body.
        assert {answer.status_code for answer in await every(yard, SECRET, **bearer("x" * 20))} == {401}


async def test_a_stranger_learns_nothing_of_a_body() -> None:
    async with live_yard(MODELS, keys=KEYS) as yard:
        for content in (b"", b"{", b'{"q": 1}', b'{"q": "a", "target": "nonsense", "api_key": 1}'):
            assert (await yard.http.post("/translate", content=content)).status_code == 401
        assert not yard.state.instances


async def test_what_was_used_is_that_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LOOK_EVERY", 0.05)
    async with live_yard(MODELS, keys=KEYS) as yard:
        await every(yard, SECRET)

        async def used() -> dict[str, Any]:
            answer = await yard.http.get("/v1/usage", params={"by": "key"}, headers=bearer(OTHER))
            return {one["key"]: one for one in answer.json()["data"]}

        async def all_of_it() -> bool:
            # Three texts, and the document.
            return bool((await used()).get("app", {}).get("output_tokens") == 4)

        await until(all_of_it)


async def test_a_key_in_a_body_is_in_no_log(capfd: pytest.CaptureFixture[str]) -> None:
    async with live_yard(MODELS, keys=KEYS) as yard:
        await every(yard, SECRET)
        await every(yard, "wrong" * 5)
        await yard.http.post("/translate", json={**ASKED, "target": "xx", "api_key": SECRET})
        status = await yard.http.get("/admin/status", headers=bearer(OTHER))
        metrics = await yard.http.get("/metrics", headers=bearer(OTHER))
        assert SECRET not in status.text + metrics.text
    said = "".join(capfd.readouterr())
    assert SECRET not in said
    assert "wrongwrong" not in said


async def test_without_keys_one_in_the_body_is_passed_over() -> None:
    async with live_yard(MODELS) as yard:
        assert [answer.status_code for answer in await every(yard, "anything")] == [200] * 6
        refusal = (await yard.http.post("/v1/models/ef/predict", json={**ASKED, "target": "xx"})).json()
        assert set(refusal["error"]) == {"message", "type", "param", "code"}, json.dumps(refusal)


LIMIT = {"max_chars": 20_000}
LARGEST = FREE + LIMIT["max_chars"] * MARKUP


async def test_of_a_stranger_little_is_read() -> None:
    async with live_yard(MODELS, keys=KEYS, translation=LIMIT) as yard:
        large = b'{"q": "' + b"a" * LARGEST + b'"}'

        async def pieces() -> AsyncIterator[bytes]:
            yield large

        for content in (large, pieces()):
            answer = await yard.http.post("/translate", content=content)
            assert refused(answer)[:2] == (401, "invalid_api_key")
            assert "Authorization: Bearer KEY" in answer.json()["error"]
        named = await yard.http.post("/translate", content=large, headers=bearer(SECRET))
        assert refused(named) == (400, "invalid_request", "target")
        # As much as may be translated at once, each character as six bytes, and the key at the end.
        asked = {**ASKED, "q": "\u00e9" * LIMIT["max_chars"], "api_key": SECRET}
        assert (await yard.http.post("/translate", content=json.dumps(asked).encode())).status_code == 200


async def test_strangers_together_do_not_keep_those_out_who_send_little() -> None:
    async with live_yard(MODELS, keys=KEYS, translation=LIMIT) as yard:
        head = f"POST /translate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {LARGEST}\r\n\r\n".encode()
        writers = []
        for _ in range(TOGETHER):
            _, writer = await asyncio.open_unix_connection(yard.socket)
            writer.write(head + b" " * (LARGEST - 1))  # the last byte never comes
            await writer.drain()
            writers.append(writer)
        large = {
            **ASKED,
            "q": "a" * LIMIT["max_chars"],
            "glossary": {"x" * 200: "y" * 200},
            "more": "z" * FREE,
        }

        async def status(body: dict[str, Any], **headers: str) -> int:
            return (await yard.http.post("/translate", json=body, headers=headers)).status_code

        async def is_full() -> bool:
            return await status({**large, "api_key": SECRET}) == 503

        await until(is_full)
        assert await status({**ASKED, "api_key": SECRET}) == 200
        assert await status(large, **bearer(SECRET)) == 200
        for writer in writers:
            writer.close()

        async def is_free() -> bool:
            return await status({**large, "api_key": SECRET}) == 200

        await until(is_free)
