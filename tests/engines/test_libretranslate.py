"""The adapter of LibreTranslate elsewhere: on paper, and in a yard with a server of its API beside it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway.live_yard import LiveYard, live_yard
from modelyard.compose import ahead
from modelyard.core.languages import Pairs
from modelyard.core.types import Address, Cause, Share, Spec, WarmUp
from modelyard.engines import translating
from modelyard.engines.base import Attach, Call, Profile
from modelyard.engines.libretranslate import LibreTranslateEngine
from modelyard.engines.openai import OpenAiEngine
from waiting import until
from wire.raw_engines import Peer, engine

ENGINE = LibreTranslateEngine()
PROFILE = Profile("libretranslate", "libretranslate")
KEY = "lt-far-away-1"
EN_FR = Pairs(frozenset({("en", "fr")}))


def spec(url: str = "https://far.example", pairs: Pairs = EN_FR, **parameters: object) -> Spec:
    return Spec("far", "d" * 64, "libretranslate", parameters={"url": url, **parameters}, pairs=pairs)


def told(*rows: dict[str, object]) -> Pairs:
    return ENGINE.read_languages(json.dumps(rows).encode())


# -- on paper ---------------------------------------------------------------------------------------------


def test_it_is_attached_to_and_takes_no_memory() -> None:
    assert ENGINE.problems(spec("https://far.example/lt/", key=KEY), PROFILE) == []
    attach = ENGINE.command(spec("https://far.example/lt/", ca="/ca.pem"), PROFILE, (), Address(), {})
    assert attach == Attach("https://far.example/lt/", ca="/ca.pem")
    assert ENGINE.need(spec(), {}).shares == (Share("ram", 0),)
    assert ENGINE.paths(spec()) == {"/translate"}
    assert ENGINE.elsewhere(spec())


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"parameters": {}}, "parameters.url"),
        ({"parameters": {"url": "far.example"}}, "parameters.url"),
        ({"parameters": {"url": "http://h", "key": "two words"}}, "parameters.key"),
        ({"parameters": {"url": "http://h", "ca": "ca.pem"}}, "parameters.ca"),
        ({"parameters": {"url": "http://h", "model": "m"}}, "parameters.model"),
        ({"source": "/m.gguf"}, "source"),
        ({"warm_up": WarmUp(prefixes=("Be brief.",))}, "warm_up.prefixes"),
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, Any], path: str) -> None:
    assert [where for where, _ in ENGINE.problems(replace(spec(), **changed), PROFILE)] == [path]


def test_the_key_goes_into_the_body_and_what_it_does_not_know_stays_here() -> None:
    fields = {"q": ["a"], "source": "en", "target": "fr", "partial": True, "glossary": {"a": "b"}}
    asked = {"q": ["a"], "source": "en", "target": "fr", "local_only": True}
    assert ENGINE.translation(spec(), {**fields, "alternatives": 2}) == {**asked, "alternatives": 2}
    assert ENGINE.translation(spec(key=KEY), fields) == {**asked, "api_key": KEY}
    assert KEY not in repr(ENGINE.command(spec(key=KEY), PROFILE, (), Address(), {}))


def test_it_is_ready_after_a_translation() -> None:
    (call,) = ENGINE.warm_up(spec(key=KEY))
    assert (call.method, call.path) == ("POST", "/translate")
    asked = {"source": "en", "target": "fr", "local_only": True, "api_key": KEY}
    assert json.loads(call.body) == {"q": ["Hello"], **asked}
    (call,) = ENGINE.warm_up(spec(pairs=Pairs()))
    assert json.loads(call.body)["target"] == "en"
    assert ENGINE.warm_up(spec(generate=False)) == (Call("GET", "/languages"),)
    calls = ENGINE.warm_up(replace(spec(generate=False), warm_up=WarmUp(prompts=("a", "b"))))
    assert [(json.loads(call.body)["q"], call.name) for call in calls] == [
        (["a"], "warm_up.prompts[0]"),
        (["b"], "warm_up.prompts[1]"),
    ]


def test_its_languages_are_asked_for_unless_they_are_said() -> None:
    assert ENGINE.languages(spec()) is None
    assert ENGINE.languages(spec(pairs=Pairs())) == Call("GET", "/languages")
    both = told(
        {"code": "en", "name": "English", "targets": ["en", "zh-Hans"]},
        {"code": "zh-Hans", "name": "Chinese", "targets": ["zh-Hans", "en"]},
    )
    assert both == Pairs(among=frozenset({"en", "zh-Hans"}))
    assert told({"code": "en", "targets": ["fr", "de"]}, {"code": "fr"}) == Pairs(
        frozenset({("en", "fr"), ("en", "de"), ("fr", "en")})
    )


@pytest.mark.parametrize(
    "odd", [{"code": 3}, {"code": "../x", "targets": ["en"]}, {"code": "fr", "targets": "en"}]
)
def test_rows_that_mean_nothing_are_passed_over(odd: dict[str, object]) -> None:
    assert told({"code": "en", "targets": ["fr", 3, "x y"]}, odd) == EN_FR


@pytest.mark.parametrize("answer", [b"{}", b"[3]", b"<html>", b'"en"', b"\xff"])
def test_an_answer_that_is_no_list_of_languages(answer: bytes) -> None:
    with pytest.raises(ValueError):
        ENGINE.read_languages(answer)


def test_a_list_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translating, "MOST", 2)
    assert told({"code": "en", "targets": ["fr", "de"]})
    with pytest.raises(ValueError, match="more than 2 pairs"):
        told({"code": "en", "targets": ["fr", "de", "it"]})
    assert told({"code": "en"}, {"code": "fr"}, {"code": "de"}) == Pairs(among=frozenset({"en", "fr", "de"}))


@pytest.mark.parametrize(
    ("status", "cause", "said"),
    [
        (403, Cause.BAD_ARGUMENTS, "parameters.key is missing by https://far.example"),
        (404, Cause.BAD_ARGUMENTS, "has no LibreTranslate's API (parameters.url)"),
        (400, Cause.BAD_MODEL, "it wants a key (parameters.key)"),
        (302, Cause.BAD_ARGUMENTS, "parameters.url leads elsewhere"),
        (429, Cause.LAUNCH, ""),
        (500, Cause.LAUNCH, ""),
    ],
)
def test_what_a_refusal_means(status: int, cause: Cause, said: str) -> None:
    found = ENGINE.refused(spec(), status)
    assert found is not None
    assert found[0] is cause
    assert said in found[1]
    assert ENGINE.refused(spec(), 418) is None
    taken = ENGINE.refused(spec(key=KEY), 401)
    assert taken is not None
    assert "parameters.key is not taken" in taken[1]
    assert KEY not in taken[1]


def test_another_modelyard_translates_what_its_model_is_said_to() -> None:
    near, far = OpenAiEngine(), replace(spec(), engine="openai")
    assert near.paths(far) == {"/translate"}
    assert near.elsewhere(far)
    assert near.paths(replace(far, pairs=Pairs())) == {"/v1/chat/completions", "/v1/completions"}
    (call,) = near.warm_up(far)
    asked = {"source": "en", "target": "fr", "local_only": True}
    assert json.loads(call.body) == {"q": ["Hello"], **asked}
    both = replace(far, parameters={**far.parameters, "apis": ["chat"], "model": "there"})
    assert near.paths(both) == {"/translate", "/v1/chat/completions"}
    asked = {"q": ["a"], "local_only": True}
    assert near.translation(far, {"q": ["a"]}) == asked, "so that two never send a text to and fro"
    assert near.translation(both, {"q": ["a"]}) == {**asked, "model": "there"}
    (call,) = near.warm_up(both)
    assert call.path == "/v1/chat/completions"


# -- with a server beside it ------------------------------------------------------------------------------


class LibreTranslate:
    """As much of its API as is asked for; `listed` is None while it has no list, `key` what it wants."""

    def __init__(self, key: str = KEY) -> None:
        self.key = key
        self.listed: object = [{"code": "en", "targets": ["fr"]}, {"code": "fr", "targets": ["en", "de"]}]
        self.asked: list[dict[str, Any]] = []

    def answer(self, head: bytes, body: bytes) -> tuple[int, object]:
        if head.startswith(b"GET /languages"):
            return (500, {"error": "not yet"}) if self.listed is None else (200, self.listed)
        if head.startswith(b"GET /v1/models"):  # as another Modelyard is looked at
            return 200, {"data": []}
        assert head.startswith(b"POST /translate")
        self.asked.append(json.loads(body))
        if self.asked[-1].pop("api_key", "") != self.key:
            return 403, {"error": "Invalid API key"}
        return 200, {"translatedText": [f"far {text}" for text in self.asked[-1]["q"]]}

    async def __call__(self, peer: Peer) -> None:
        while True:
            status, answer = self.answer(*await peer.request())
            data = json.dumps(answer).encode()
            kind = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
            await peer.send(b"HTTP/1.1 %d X\r\n" % status + kind + data)


@asynccontextmanager
async def beside(
    server: LibreTranslate, key: str = KEY, translation: Mapping[str, Any] | None = None, **fields: Any
) -> AsyncIterator[LiveYard]:
    async with engine(server) as at:
        parameters = {"url": f"http://127.0.0.1:{at.address.port}", "key": key}
        far = {"engine": "libretranslate", "parameters": parameters, **fields}
        async with live_yard({"far": far}, translation=dict(translation or {})) as yard:
            yield yard


async def listed(yard: LiveYard, query: str) -> list[str]:
    return [model["id"] for model in (await yard.http.get(f"/v1/models?{query}")).json()["data"]]


async def test_it_is_asked_at_the_start_what_it_translates() -> None:
    async with beside(LibreTranslate()) as yard:
        entry = yard.yard.names.model("far")
        await until(lambda: bool(entry.pairs))
        assert set(entry.pairs) == {("en", "fr"), ("fr", "en"), ("fr", "de")}
        assert await listed(yard, "pair=fr-de") == ["far"]
        assert await listed(yard, "pair=de-fr") == []
        assert await listed(yard, "capability=translation") == ["far"]
        assert yard.reserved() == 0


async def test_it_is_not_asked_what_was_said() -> None:
    server = LibreTranslate()
    async with beside(server, pairs=["en-it"]) as yard:
        assert await listed(yard, "pair=en-it") == ["far"]
        assert not yard.state.instances
        await yard.load("far")
        assert [(one["source"], one["target"]) for one in server.asked] == [("en", "it")]
        assert set(yard.yard.names.model("far").pairs) == {("en", "it")}


async def test_it_is_not_asked_where_no_text_may_leave() -> None:
    server = LibreTranslate()
    async with beside(server, translation={"local_only": True}) as yard:
        await until(lambda: not yard.yard.ahead._loading)
        assert not yard.state.sequence
        assert not server.asked


async def test_one_that_cannot_tell_yet_serves_and_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "ASK_EVERY", 0.05)
    server = LibreTranslate()
    before, server.listed = server.listed, None
    async with beside(server, keep_alive="0s") as yard:
        await until(lambda: len(server.asked) > 1)  # it was loaded, left, and loaded again
        assert not yard.yard.names.model("far").pairs
        server.listed = before
        await until(lambda: bool(yard.yard.names.model("far").pairs))


async def test_a_key_that_is_not_taken_is_said_and_not_told() -> None:
    async with beside(LibreTranslate(), key="lt-wrong-one") as yard:
        refused = await yard.post("/admin/models/far/load")
        assert (refused.status, refused.code) == (503, "cannot_load"), refused.body
        assert "parameters.key is not taken by http://127.0.0.1:" in refused.message
        for path in ("/v1/models/far", "/admin/models", "/admin/journal", "/admin/explain/far"):
            assert "lt-wrong" not in (await yard.http.get(path)).text
