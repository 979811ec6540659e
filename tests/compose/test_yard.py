"""The life of a yard: what it loads at its start, models that come and go, and one yard per data folder."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from compose.test_refused_starts import GGUF
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
)
from modelyard import compose, config, foreground
from modelyard.config.problems import ConfigErrors
from modelyard.engines.base import Files
from modelyard.errors import ConfigError, ModelNotFound
from modelyard.runtime.entries import Entry, Progress
from runtime.files_elsewhere import FilesElsewhere
from waiting import until


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
            await until(lambda: not yard.yard.ahead._loading)
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


class TestWhatRunsBeside:
    async def test_what_is_answered_at_the_end_counts_for_the_next_start(self) -> None:
        with short_folder() as folder:
            server = {"data_dir": str(folder)}
            async with live_yard({"a": fake()}, server=server) as yard:
                async with yard.open_stream("a", tokens=12, fake={"tokens_per_second": 20}) as (_, more):
                    await anext(more)
                    stopping = asyncio.create_task(yard.yard.stop(20))
                    async for _ in more:
                        pass
                await stopping
            async with live_yard({"a": fake()}, server=server, preload="auto") as yard:
                await loaded(yard, "a")

    async def test_what_fails_there_is_said(self) -> None:
        async def no_demand() -> Mapping[str, float]:
            raise OSError("no demand")

        with short_folder() as folder:
            text = sections(folder, {"a": fake()}, preload="auto")
            yard = await compose.build(config.load(None, text))
            yard.ahead._demand = no_demand
            try:
                with capture_logs() as logs:
                    await yard.start()
                    await until(lambda: [entry["task"] for entry in logs if entry["event"] == "task.failed"])
            finally:
                await yard.close()
            (entry,) = (entry for entry in logs if entry["event"] == "task.failed")
            assert (entry["task"], str(entry["exc_info"])) == ("preload", "no demand")

    async def test_a_stop_that_fails_is_no_good_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            launcher = yard.driver.launcher
            close = launcher.close

            async def fail() -> None:
                await close()
                raise OSError("the folder is gone")

            monkeypatch.setattr(launcher, "close", fail)
            with pytest.raises(OSError, match="the folder is gone"):
                await foreground._drain(yard.yard, asyncio.Event())


class TestFiles:
    async def test_that_are_damaged_are_shown_and_told_to_who_asks(self) -> None:
        """Also when they were found by an earlier server and nobody has asked yet."""
        with short_folder() as folder:
            path = folder / "half.gguf"
            path.write_bytes(b"GGUF" + bytes(2))
            models = {"m": {"engine": "llamacpp", "source": str(path), "devices": ["ram"]}, "a": fake()}
            server = {"data_dir": str(folder / "data")}
            said = f"{path}: the file ends within its version; fetch it again. Put a whole file in its place"
            for _ in range(2):
                async with live_yard(models, server=server) as yard:
                    shown = await model_view(yard, "m")
                    assert (shown["details"]["state"], shown["error"][: len(said)]) == ("failed", said)
                    answer = await yard.chat("m")
                    assert (answer.status, answer.code) == (503, "bad_gguf")
                    assert answer.headers["x-should-retry"] == "false"
                    assert "retry-after" not in answer.headers
                    assert said in answer.message
                    assert said in (await model_view(yard, "m"))["error"]
                    assert (await yard.chat("a")).status == 200

    @pytest.mark.parametrize(
        ("content", "code", "said"),
        [
            (b"root:x:0:0:root:/root:/bin/bash\n" * 9, "bad_file", " a GGUF "),
            (GGUF[:-100], "bad_gguf", f"the file ends after {len(GGUF) - 100} of "),
        ],
    )
    async def test_that_are_no_whole_gguf_are_told_without_a_retry(
        self, content: bytes, code: str, said: str
    ) -> None:
        with short_folder() as folder:
            path = folder / "m.gguf"
            path.write_bytes(content)
            models = {"m": {"engine": "llamacpp", "source": str(path), "devices": ["ram"]}}
            async with live_yard(models) as yard:
                shown = await model_view(yard, "m")
                assert shown["details"]["state"] == "failed"
                assert said in shown["error"]
                for _ in range(2):
                    answer = await yard.chat("m")
                    assert (answer.status, answer.code) == (503, code)
                    assert said in answer.message
                    assert "root:" not in answer.message
                    assert answer.headers["x-should-retry"] == "false"
                assert (await model_view(yard, "m"))["details"]["state"] == "failed"


async def model_view(yard: LiveYard, model: str) -> dict[str, Any]:
    """What the control surface says of a model."""
    models = (await yard.http.get("/admin/models")).json()
    return next(one for one in models if one["id"] == model)


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
            await yard.yard.remove_model("a")
            for name in ("a", "x"):
                assert (await yard.chat(name)).code == "model_not_found"
            await until(lambda: not yard.state.instances)
            assert yard.reserved() == 0
            with pytest.raises(ModelNotFound):
                await yard.yard.remove_model("a")
            assert (await yard.chat("b")).status == 200

    async def test_that_go_finish_what_they_run(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            async with yard.open_stream("a", tokens=12, fake={"tokens_per_second": 20}) as (stream, more):
                await anext(more)
                await yard.yard.remove_model("a")
                async for _ in more:
                    pass
            assert (stream.text, stream.done) == (right_text("a", "hi", 12), True)
            await until(lambda: not yard.state.instances)

    async def test_that_go_refuse_who_waits(self) -> None:
        async with live_yard({"a": fake(parameters={"load_time": 5.0})}) as yard:
            waiting = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            await yard.yard.remove_model("a")
            answer = await waiting
            assert (answer.status, answer.code) == (404, "model_removed")
            await until(lambda: not yard.state.instances)

    async def test_that_go_are_forgotten_with_their_last_instance(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}) as yard:
            driver = yard.driver
            await yard.load("a")
            gone, idle = (yard.yard.names.resolve(name).spec.version for name in "ab")
            driver._on_progress(Progress(gone, 1, 2))
            await yard.yard.remove_model("a")
            assert gone in driver.entries, "its instance is still there"
            await until(lambda: not yard.state.instances)
            assert set(driver.entries) == {idle}
            await yard.yard.remove_model("b")
            driver._on_progress(Progress(idle, 1, 2))
            assert (driver.entries, driver.progress) == ({}, {})

    async def test_that_go_while_their_files_are_fetched_end_the_fetch(self, tmp_path: Path) -> None:
        class Endless(FilesElsewhere):
            """A download that never ends by itself."""

            def __init__(self) -> None:
                self.began, self.ended = asyncio.Event(), asyncio.Event()

            async def fetch(self, entry: Entry, progress: Callable[[Progress], None]) -> Files:
                progress(Progress(entry.spec.version, 1, 2))
                self.began.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.ended.set()
                return {}

        source = tmp_path / "model.gguf"
        source.write_bytes(GGUF)
        model = {"engine": "llamacpp", "source": str(source), "devices": ["ram"]}
        async with live_yard({"a": fake(), "m": model}) as yard:
            endless = yard.driver.commands._files = Endless()
            waiting = asyncio.create_task(yard.chat("m"))
            await asyncio.wait_for(endless.began.wait(), 20)
            assert len(yard.driver.progress) == 1
            await yard.yard.remove_model("m")
            assert (await waiting).code == "model_removed"
            await asyncio.wait_for(endless.ended.wait(), 20)
            assert yard.driver.progress == {}

    async def test_come_once_when_two_ask_at_a_time(self, tmp_path: Path) -> None:
        """Its file is in the cache, so its header is read before it is there."""
        source = str(tmp_path / "small.gguf")
        Path(source).write_bytes(GGUF)
        model = {"engine": "llamacpp", "source": source, "devices": ["ram"]}
        async with live_yard({"a": fake()}) as yard:
            await yard.yard.store.fetch(source)
            orders = [read(b=model), read(b=model), read(c={**model, "aliases": ["b"]})]
            added = await asyncio.gather(
                *(yard.yard.add_model(order, order.models[0]) for order in orders), return_exceptions=True
            )
            assert [type(one) for one in added] == [type(None), ConfigErrors, ConfigErrors]
            for one, name in zip(added[1:], "bc", strict=True):
                assert (
                    str(one) == f"models.{name}: 'b' is a name of a model that is served; remove that first"
                )
            assert [entry.spec.model for entry in yard.yard.names.all()] == ["a", "b"]

    async def test_that_can_never_fit_do_not_come(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            more = read(b=fake(11 * MB, min_replicas=1))
            with pytest.raises(ConfigErrors) as caught:
                await yard.yard.add_model(more, more.models[0])
            (problem,) = caught.value.problems
            assert problem.path == "models.b"
            assert problem.message.startswith(
                "needs 11000000 bytes (11.0 MB) and can never fit: the budget of gpu0"
            )
            assert (await yard.chat("b")).code == "model_not_found"
            assert len(yard.state.versions) == len(yard.driver.entries) == 1
            smaller = read(b=fake())
            await yard.yard.add_model(smaller, smaller.models[0])
            assert (await yard.chat("b")).status == 200

    async def test_come_back_changed(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            first = (await yard.chat("a")).headers["x-modelyard-version"]
            await yard.yard.remove_model("a")
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
