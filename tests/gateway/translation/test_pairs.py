"""Who is asked to translate, of models as they are at the moment: over processes of the fake engine, and a
server elsewhere beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.test_libretranslate import LibreTranslate
from gateway.live_yard import SHARE, LiveYard, fake, live_yard, short_folder
from gateway.translation.translators import ask, refused, translated, translator
from modelyard.config import Config
from modelyard.core.languages import NO_PAIRS
from modelyard.core.routing import Candidate
from modelyard.gateway.translation.pairs import Translators
from waiting import until
from wire.raw_engines import engine

ONE = SHARE + 1_000_000  # a device with room for one of them


async def by(yard: LiveYard, source: str = "en", target: str = "fr", **more: Any) -> str:
    """Which model translates."""
    return str((await translated(yard, "one", source, target, **more))["model"])


def translators(yard: LiveYard) -> Translators:
    return Translators(yard.driver, yard.yard.names, lambda: yard.yard.config.translation)


def candidate(yard: LiveYard, model: str) -> Candidate:
    return next(each for each in translators(yard).candidates() if each.model == model)


@asynccontextmanager
async def with_far(models: dict[str, Any], **settings: Any) -> AsyncIterator[tuple[LiveYard, LibreTranslate]]:
    """A yard with the model `far` beside its own, at another Modelyard: it translates `en-fr` and `en-it`."""
    server = LibreTranslate(key="")
    async with engine(server) as at:
        far = {
            "engine": "openai",
            "slots": 8,
            "pairs": ["en-fr", "en-it"],
            "parameters": {"url": f"http://127.0.0.1:{at.address.port}"},
        }
        async with live_yard({**models, "far": far}, **settings) as yard:
            yield yard, server


class TestWhoIsAsked:
    async def test_one_that_is_in_memory_before_others(self) -> None:
        models = {"a": translator("en-fr", "en-it"), "b": translator("en-fr", "en-de")}
        async with live_yard(models, memory=ONE) as yard:
            assert await by(yard, "en", "de") == "b"
            assert [await by(yard) for _ in range(3)] == ["b"] * 3
            assert await by(yard, "en", "it") == "a"
            assert await by(yard) == "a"
            assert yard.state.sequence == 2

    async def test_of_those_that_are_not_the_one_that_loads_fastest_as_learned(self) -> None:
        models = {"a": translator("en-fr", parameters={"load_time": 0.6}), "b": translator("en-fr")}
        async with live_yard(models, memory=ONE) as yard:
            for model in ("b", "a"):
                await yard.load(model)
                await yard.unload(model)
                await until(lambda: not yard.state.instances)
            assert await by(yard) == "b"

    async def test_the_better_one_where_both_are_alike(self) -> None:
        models = {"a": translator("en-fr"), "b": translator("en-fr", quality=1)}
        async with live_yard(models) as yard:
            assert await by(yard) == "b"
            await yard.load("a")
            assert await by(yard) == "b"

    async def test_one_that_was_asked_for_by_name_alone(self) -> None:
        models = {"a": translator("en-fr"), "b": translator("en-fr", quality=1)}
        async with live_yard(models) as yard:
            assert await by(yard, model="a") == "a"
            version = yard.yard.names.model("a").spec.version
            assert await by(yard, model=version) == "a"
            refused = await ask(yard, "one", "en", "de", model="a")
            assert refused.status_code == 400


class TestElsewhere:
    async def test_what_no_model_here_translates(self) -> None:
        async with with_far({"near": translator("en-fr")}) as (yard, server):
            assert await by(yard, "en", "it") == "far"
            sent = {"q": ["one"], "source": "en", "target": "it", "local_only": True}
            assert server.asked[-1] == sent
            assert await by(yard) == "near", "though it has to be loaded, and the other one is ready"

    async def test_what_would_wait_too_long_here(self) -> None:
        near = translator("en-fr", parameters={"tokens_per_second": 4})
        async with with_far({"near": near}, translation={"spill_after": "100ms"}) as (yard, _):
            assert await by(yard) == "near"
            async with asyncio.TaskGroup() as tasks:
                slow = tasks.create_task(translated(yard, "one two three four"))
                await until(lambda: yard.leases() == 1)
                assert candidate(yard, "near").wait > 0.1
                assert await by(yard) == "far"
            assert slow.result()["model"] == "near"
            assert await by(yard) == "near"

    async def test_a_short_wait_here_before_a_price_there(self) -> None:
        near = translator("en-fr", parameters={"tokens_per_second": 20})
        async with with_far({"near": near}) as (yard, server):
            found = await asyncio.gather(*(by(yard) for _ in range(8)))
            assert found == ["near"] * 8
            assert not server.asked

    async def test_nothing_leaves_this_machine_where_that_is_said(self) -> None:
        settings = {
            "local_only": True,
            "spill_after": "0s",
            "llm": {"model": "talk"},
            "fallback": {"model": "last"},
        }
        near = translator("en-fr", parameters={"tokens_per_second": 20})
        async with with_far({"near": near}, translation=settings) as (yard, server):
            found = translators(yard)
            far = yard.yard.names.model("far")
            assert [each.model for each in found.candidates()] == ["near"]
            assert await asyncio.gather(*(by(yard) for _ in range(4))) == ["near"] * 4
            assert (await ask(yard, "one", "en", "it")).status_code == 400
            assert (await ask(yard, "one", "en", "it", model="far")).status_code == 400
            assert found.routes("en", "it", far) == []
            assert not server.asked

    async def test_nothing_leaves_this_machine_where_a_request_says_so(self) -> None:
        async with with_far({"near": translator("en-fr")}) as (yard, server):
            assert (await ask(yard, "one", local_only=True)).json()["model"] == "near"
            refused = await ask(yard, "one", "en", "it", local_only=True)
            document = await yard.http.post(
                "/translate_file",
                data={"source": "en", "target": "it", "local_only": "true"},
                files={"file": ("a.txt", b"one")},
            )
            for answer in (refused, document):
                assert (answer.status_code, "on this machine" in answer.text) == (400, True)
            assert not server.asked

    async def test_neither_a_language_model_nor_what_is_kept_for_the_end_where_they_are_elsewhere(
        self,
    ) -> None:
        settings: dict[str, Any] = {"llm": {"model": "talk"}, "fallback": {"model": "far"}}
        talk = {"engine": "openai", "parameters": {"url": "http://127.0.0.1:9"}}
        async with with_far({"talk": talk}, translation=settings) as (yard, _):
            found = translators(yard)
            assert found.candidates() == []
            kinds = [(route.kind, route.steps[0].model) for route in found.routes("en", "it")]
            assert kinds == [("llm", "talk"), ("fallback", "far")]
            setting = replace(yard.yard.config.translation, local_only=True)
            assert Translators(yard.driver, yard.yard.names, lambda: setting).routes("en", "it") == []

    async def test_a_language_model_that_is_asked_for_by_name_is_the_one_that_was_configured(self) -> None:
        settings = {"llm": {"model": "talk"}, "fallback": {"text": "not now"}}
        models = {"talk": fake(memory=1_000), "other": fake(memory=1_000), "a": translator("en-fr")}
        async with live_yard(models, translation=settings) as yard:
            found, named = translators(yard), yard.yard.names.model
            assert [route.kind for route in found.routes("en", "fr", named("talk"))] == ["llm", "fixed"]
            assert [route.kind for route in found.routes("en", "fr", named("a"))] == ["direct", "fixed"]
            assert found.routes("en", "fr", named("other")) == []
            assert found.routes("en", "de", named("a")) == [], "a fixed answer is for pairs that there are"


async def test_what_the_registry_kept_of_a_model_whose_files_are_not_here() -> None:
    async with live_yard({"a": translator("de-en")}) as yard:
        registered = {**translator(), "pairs": ["en-fr"], "name": "reg"}
        assert (await yard.post("/v1/models", registered)).status == 201
        entry = yard.yard.names.model("reg")
        held = yard.yard.catalog._held
        assert set(held.pairs(entry)) == {("en", "fr")}
        assert not held.pairs(yard.yard.names.model("a")), "one of the file"
        # As if its files had told, before this start, and are gone.
        entry.spec, entry.told, entry._read = replace(entry.spec, pairs=NO_PAIRS), NO_PAIRS, None
        assert not entry.pairs
        assert [each.model for each in translators(yard).candidates() if each.pairs] == ["a"]
        found = Translators(yard.driver, yard.yard.names, lambda: yard.yard.config.translation, held.pairs)
        assert [route.steps[0].model for route in found.routes("en", "fr")] == ["reg"]
        assert found.routes("en", "it", entry) == []


async def test_the_rules_may_change_while_it_serves() -> None:
    async with live_yard({"a": translator("de-en", "en-fr")}) as yard:
        assert (await ask(yard, "one", "de", "fr")).status_code == 400

        def with_pivot(now: Config) -> Config:
            return replace(now, translation=replace(now.translation, pivot=("en",)))

        await yard.yard.live.change(with_pivot)
        assert (await translated(yard, "one", "de", "fr"))["translatedText"] == "[fr] [en] one"


async def test_all_models_that_are_tried_together_are_waited_for_as_long_as_for_one() -> None:
    slow = translator("en-fr", max_wait="1s", parameters={"load_time": 20.0})
    async with live_yard({"a": slow, "b": slow, "c": slow}, memory=4 * SHARE) as yard:
        began = asyncio.get_running_loop().time()
        answer = await ask(yard, "one")
        lasted = asyncio.get_running_loop().time() - began
        assert refused(answer)[:2] == (503, "broken_promise")
        assert 1.0 <= lasted < 1.9, "not a second for each of them"


async def test_what_was_waited_for_one_is_left_to_the_next_where_that_is_ready() -> None:
    models = {
        "a": translator("en-fr", max_wait="3s", quality=1, parameters={"load_time": 20.0}),
        "b": translator("en-fr", max_wait="3s"),
    }
    async with live_yard(models, memory=4 * SHARE) as yard:
        waiting = asyncio.create_task(ask(yard, "one"))
        await until(lambda: yard.waiting() == 1)
        await yard.load("b")
        answer = await waiting
        assert (answer.status_code, answer.json()["model"]) == (200, "b")
        assert int(answer.headers["x-modelyard-queue-ms"]) >= 3000


def learned(folder: Path, memory: int) -> dict[str, Any]:
    """Settings of a yard that keeps what was asked for, and loads the most used pairs after a restart."""
    return {
        "server": {"data_dir": str(folder)},
        "translation": {"preload": "auto"},
        "memory": memory,
    }


class TestAhead:
    async def test_the_pairs_that_are_declared(self) -> None:
        models = {
            name: translator(*pairs)
            for name, *pairs in (("a", "en-fr"), ("b", "de-en", "en-fr"), ("c", "fr-it"))
        }
        settings = {"preload": ["de-en", "en-fr", "en-it", "xx-yy"], "pivot": ["fr"]}
        async with live_yard(models, memory=4 * SHARE, translation=settings) as yard:
            await until(lambda: yard.ready("b") is not None and yard.ready("c") is not None)
            await until(lambda: not yard.yard.ahead._loading)
            # b has two of them; over French, c is needed beside it; nobody translates the last.
            assert [instance.id for instance in yard.state.instances.values()] == ["b-1", "c-2"]

    async def test_those_that_were_used_most(self) -> None:
        models = {
            "a": translator("en-fr"),
            "b": translator("en-de"),
            "c": translator("en-it"),
            "talk": fake(),
        }
        with short_folder() as folder:
            settings = learned(folder, 3 * SHARE)
            async with live_yard(models, **settings) as yard:
                assert not yard.state.instances
                for target in ("de", "it", "de"):
                    await by(yard, "en", target)
                assert (await yard.chat("talk")).status == 200
            async with live_yard(models, **settings) as yard:
                await until(lambda: len(yard.state.instances) == 2)
                await until(lambda: not yard.yard.ahead._loading)
                assert [instance.id for instance in yard.state.instances.values()] == ["b-1", "c-2"]

    async def test_pairs_count_not_the_requests_of_a_model(self) -> None:
        """Of a model with two pairs of which each is asked for less than that of another model."""
        models = {"two": translator("en-de", "en-it"), "one": translator("en-fr")}
        with short_folder() as folder:
            settings = learned(folder, SHARE)
            async with live_yard(models, **settings) as yard:
                for target in ("de", "it", "de", "it", "fr", "fr", "fr"):
                    await by(yard, "en", target)
            async with live_yard(models, **settings) as yard:
                demand = await yard.yard.keeping.demand()
                assert demand["two"] > demand["one"]
                await until(lambda: yard.ready("one") is not None)
                await until(lambda: not yard.yard.ahead._loading)
                assert [instance.id for instance in yard.state.instances.values()] == ["one-1"]

    async def test_a_model_that_was_named_for_a_pair_is_the_one_for_it(self) -> None:
        models = {"better": {**translator("en-de"), "quality": 1}, "named": translator("en-de")}
        with short_folder() as folder:
            settings = learned(folder, 2 * SHARE)
            async with live_yard(models, **settings) as yard:
                assert (await by(yard, "en", "de", model="named")) == "named"
            async with live_yard(models, **settings) as yard:
                await until(lambda: yard.ready("named") is not None)
                await until(lambda: not yard.yard.ahead._loading)
                assert [instance.id for instance in yard.state.instances.values()] == ["named-1"]


async def test_models_are_found_by_what_they_translate() -> None:
    models = {
        "a": translator("en-fr"),
        "b": {**translator(), "pairs": [], "languages": ["en", "de", "pt_BR"]},
        "talk": fake(languages=["en", "fr"]),
    }
    async with live_yard(models) as yard:

        async def found(query: str) -> list[str]:
            return [each["id"] for each in (await yard.http.get(f"/v1/models?{query}")).json()["data"]]

        assert await found("pair=en-fr") == ["a"]
        assert await found("pair=fr-en") == []
        assert await found("pair=de-pt") == ["b"]
        assert await found("capability=translation") == ["a", "b"]
        made = await yard.post("/v1/models", {"name": "reg", **translator("en-fr")})
        assert made.status == 201, made.body
        (version,) = (await yard.http.get("/v1/models/reg/versions")).json()["data"]
        assert version["capabilities"]["pairs"] == [["en", "fr"]]
        assert "translation" in version["capabilities"]["features"]
        assert await found("pair=en-fr") == ["a", "reg"]
