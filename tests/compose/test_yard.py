"""The life of a yard: what it loads at its start, models that come and go, and one yard per data folder."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.live_yard import (
    MB,
    SHARE,
    LiveYard,
    child_yard,
    fake,
    live_yard,
    right_text,
    sections,
    short_folder,
    until,
)
from modelyard import compose, config
from modelyard.config.problems import ConfigErrors
from modelyard.errors import ConfigError, ModelNotFound


def read(**models: Any) -> config.Config:
    """A configuration of these models alone, as `add_model` takes it."""
    return config.load(None, yaml.safe_dump({"models": models}))


async def loaded(yard: LiveYard, *models: str) -> None:
    await until(lambda: all(yard.ready(model) is not None for model in models))


class TestPreload:
    async def test_in_the_order_of_the_list(self) -> None:
        models = {name: fake() for name in "abc"}
        async with live_yard(models, preload=["c", "a"]) as yard:
            await loaded(yard, "a", "c")
            assert [instance.id for instance in yard.state.instances.values()] == ["c-1", "a-2"]
            assert yard.ready("b") is None

    async def test_of_models_that_say_so_themselves(self) -> None:
        async with live_yard({"a": fake(), "b": fake(preload=True)}) as yard:
            await loaded(yard, "b")
            assert yard.ready("a") is None

    async def test_puts_nobody_out(self) -> None:
        """What does not fit beside those before it is left for the first request."""
        async with live_yard({name: fake() for name in "abc"}, preload=["a", "b", "c"]) as yard:
            await loaded(yard, "a", "b")
            (preloading, _) = yard.yard._tasks
            await asyncio.wait_for(asyncio.shield(preloading), 20)
            assert yard.state.sequence == 2
            assert not yard.notes("leave")
            assert (await yard.chat("c")).status == 200

    async def test_goes_on_behind_one_that_fails(self) -> None:
        broken = fake(parameters={"exit_code": 1})
        async with live_yard({"a": broken, "b": fake()}, preload=["a", "b"]) as yard:
            await loaded(yard, "b")
            assert yard.ready("a") is None

    async def test_auto_loads_what_was_asked_for_most(self) -> None:
        models = {name: fake() for name in "abc"}
        with short_folder() as folder:
            server = {"data_dir": str(folder)}
            async with live_yard(models, server=server, preload="auto") as yard:
                assert not yard.state.instances, "nothing was asked for yet"
                for model in "cbccbc":
                    assert (await yard.chat(model)).status == 200
            async with live_yard(models, server=server, preload="auto") as yard:
                await loaded(yard, "b", "c")
                assert [instance.id for instance in yard.state.instances.values()] == ["c-1", "b-2"]
                assert yard.ready("a") is None


class TestModels:
    async def test_come_while_the_yard_runs(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            assert (await yard.chat("b")).code == "model_not_found"
            more = read(b=fake(aliases=["bee"]))
            await yard.yard.add_model(more, more.models[0])
            for name in ("b", "bee"):
                assert (await yard.chat(name)).text == right_text("b", "hi", 4)
            listed = (await yard.http.get("/v1/models")).json()["data"]
            assert [model["id"] for model in listed] == ["a", "b"]

    async def test_go_with_their_aliases_and_their_instances(self) -> None:
        async with live_yard({"a": fake(aliases=["x"]), "b": fake()}) as yard:
            await yard.load("a")
            yard.yard.remove_model("a")
            for name in ("a", "x"):
                assert (await yard.chat(name)).code == "model_not_found"
            await until(lambda: not yard.state.instances)
            assert yard.reserved() == 0
            with pytest.raises(ModelNotFound):
                yard.yard.remove_model("a")
            assert (await yard.chat("b")).status == 200

    async def test_that_go_finish_what_they_run(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            async with yard.open_stream("a", tokens=12, fake={"tokens_per_second": 20}) as (stream, more):
                await anext(more)
                yard.yard.remove_model("a")
                async for _ in more:
                    pass
            assert (stream.text, stream.done) == (right_text("a", "hi", 12), True)
            await until(lambda: not yard.state.instances)

    async def test_that_go_refuse_who_waits(self) -> None:
        async with live_yard({"a": fake(parameters={"load_time": 5.0})}) as yard:
            waiting = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            yard.yard.remove_model("a")
            answer = await waiting
            assert (answer.status, answer.code) == (404, "model_removed")
            await until(lambda: not yard.state.instances)

    async def test_come_back_changed(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            first = (await yard.chat("a")).headers["x-modelyard-version"]
            yard.yard.remove_model("a")
            changed = read(a=fake(slots=3))
            await yard.yard.add_model(changed, changed.models[0])
            answer = await yard.chat("a")
            assert answer.status == 200
            assert answer.headers["x-modelyard-version"] != first
            assert answer.headers["x-modelyard-instance"] == "a-2"

    async def test_that_cannot_be_run_here_do_not_come(self, tmp_path: Path) -> None:
        gone = tmp_path / "gone.gguf"
        wrong: list[tuple[dict[str, Any], str, str]] = [
            (fake(devices=["gpu7"]), "models.b.devices", "there is no device 'gpu7'; there are gpu0, ram"),
            (fake(parameters={"nonsense": 1}), "models.b.parameters.nonsense", "is not an option"),
            ({"engine": "llamacpp", "source": str(gone)}, "models.b.source", f"{gone} does not exist"),
            ({"engine": "llamacpp", "source": str(tmp_path)}, "models.b.source", "is a folder"),
        ]
        async with live_yard({"a": fake()}) as yard:
            for model, path, said in wrong:
                more = read(b=model)
                with pytest.raises(ConfigErrors) as caught:
                    await yard.yard.add_model(more, more.models[0])
                assert caught.value.path == path
                assert said in str(caught.value)
                assert (await yard.chat("b")).code == "model_not_found"
            assert len(yard.state.versions) == 1


class TestDataFolder:
    async def test_belongs_to_one_yard(self) -> None:
        with short_folder() as folder:
            async with child_yard(folder, {"a": fake()}) as first:
                await first.chat("a")
                other = config.load(
                    None, sections(folder, {"a": fake()}, server={"unix": f"{folder}/second"})
                )
                yard = await compose.build(other)
                try:
                    with pytest.raises(ConfigError, match=rf"another Modelyard \(pid {first.process.pid}\)"):
                        await yard.start()
                finally:
                    await yard.close()
                assert not (folder / "second").exists()
                again = await first.chat("a")
                assert again.status == 200, again.body
                first.signal(signal.SIGINT)
                assert await first.exited() == 0
            async with child_yard(folder, {"a": fake()}) as next_one:
                assert (await next_one.chat("a")).status == 200
                next_one.signal(signal.SIGTERM)
                assert await next_one.exited() == 0

    async def test_is_private_and_holds_no_half_files(self) -> None:
        with short_folder() as folder:
            async with live_yard({"a": fake()}, server={"data_dir": str(folder / "data")}) as yard:
                await yard.chat("a")
                assert (folder / "data").stat().st_mode & 0o777 == 0o700
            left = [path for path in (folder / "data").rglob("*") if path.suffix in (".new", ".tmp", ".sock")]
            assert left == []


async def test_a_yard_that_is_closed_twice_or_never_started_leaves_nothing() -> None:
    with short_folder() as folder:
        text = sections(folder, {"a": fake(SHARE)}, memory=10 * MB)
        for _ in range(2):
            yard = await compose.build(config.load(None, text))
            pools = yard.driver.devices.environment(())["MODELYARD_POOLS"]
            assert os.path.isdir(pools)
            await yard.close()
            await yard.close()
            assert not os.path.exists(pools)
        assert not (folder / "yard.sock").exists()
