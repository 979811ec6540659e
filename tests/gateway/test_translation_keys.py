"""Keys of translation: in a header, or in the body as LibreTranslate's clients send them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.live_yard import LiveYard, live_yard
from gateway.test_access import bearer
from gateway.translators import refused, translator
from modelyard.compose import keeping
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
