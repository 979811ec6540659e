"""Sleep tiers with real processes: a fake that really gives its memory back, and takes it again."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.live_yard import MB, SHARE, LiveYard, fake, live_yard, right_text
from gateway.test_explain import in_order, story
from modelyard.core.state import Instance
from waiting import until

ONE = SHARE + SHARE // 2  # room for one fake instance
DEVICES = {
    "gpu0": {"kind": "declared", "memory": ONE, "reserve": 0},
    "ram": {"memory": 300 * MB, "reserve": 0},
}


def sleeper(**parameters: Any) -> dict[str, Any]:
    policy = {name: parameters.pop(name) for name in ("keep_alive", "sleep_keep_alive") if name in parameters}
    # A load takes longer than a wake; what it holds in host memory counts its process.
    asleep = {"ram": 40 * MB, "accelerator": MB // 10}
    return fake(parameters={"asleep": asleep, "load_time": 0.3, **parameters}, **policy)


@asynccontextmanager
async def yard_of(models: Mapping[str, Any], devices: Mapping[str, Any] = DEVICES) -> AsyncIterator[LiveYard]:
    async with live_yard(models, devices=devices) as yard:
        yield yard


async def asked(yard: LiveYard, model: str, prompt: str = "hi") -> str:
    """The instance that answered, rightly."""
    answer = await yard.chat(model, prompt)
    assert (answer.status, answer.code) == (200, ""), answer.body
    assert answer.text == right_text(model, prompt, 4)
    return answer.headers["x-modelyard-instance"]


def only(yard: LiveYard, model: str) -> Instance:
    (instance,) = yard.instances(model)
    return instance


def state(yard: LiveYard, model: str) -> str:
    return only(yard, model).state.value


async def killed(yard: LiveYard, name: str) -> None:
    """End its process, and wait until that is known."""
    os.kill(yard.driver.launcher.pids(name)[0], signal.SIGKILL)
    await until(yard.driver.commands.residents[name].exit.done)


def in_pool(yard: LiveYard) -> int:
    """Bytes of the device that processes really hold."""
    (account,) = [one for one in yard.driver.devices.look({}) if one.device == "gpu0"]
    return account.total - account.free


async def test_two_models_take_turns_on_one_device_and_stay_the_same_processes() -> None:
    async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
        assert await asked(yard, "a") == "a-1"
        assert await asked(yard, "b") == "b-2"
        pids = {name: yard.driver.launcher.pids(name) for name in ("a-1", "b-2")}
        for number in range(6):
            model, other = "ab"[number % 2], "ba"[number % 2]
            assert await asked(yard, model, f"turn {number}") == only(yard, model).id
            assert (state(yard, model), state(yard, other)) == ("ready", "asleep")
            assert SHARE <= in_pool(yard) < SHARE + MB, "who sleeps keeps little of the device"
        assert {name: yard.driver.launcher.pids(name) for name in pids} == pids
        assert yard.state.sequence == 2
        rung = yard.state.versions[only(yard, "a").version.key].need.rungs[0]  # type: ignore[union-attr]
        assert rung.known
        assert rung.seconds is not None
        assert rung.seconds < 0.3
        assert only(yard, "a").version.load_seconds > 0.3, "a wake is no load"  # type: ignore[operator]


async def test_it_is_shown_everywhere() -> None:
    async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
        await asked(yard, "a")
        await asked(yard, "b")
        listed = (await yard.http.get("/admin/instances")).json()
        (row,) = [one for one in listed if one["model"] == "a"]
        assert row["state"] == "asleep"
        assert {one["device"] for one in row["memory"]} == {"gpu0", "ram"}
        assert row["sleep"]["rung"] == "asleep"
        (given,) = row["sleep"]["gave_back"].items()
        assert given == ("gpu0", SHARE - MB // 10)
        (other,) = [one for one in listed if one["model"] == "b"]
        assert other["sleep"] is None
        plan = (await yard.post("/admin/plan", {"load": {"model": "a"}})).body
        assert [step["does"] for step in plan["steps"]] == ["leave", "asleep", "wake", "ready", "loaded"]
        assert plan["steps"][0]["score"]["rung"] == "asleep"
        answer = await yard.chat("a")
        request = answer.headers["x-modelyard-request"]
        in_order(
            await story(yard, request),
            ("leave", "It sleeps (asleep) instead of stopping."),
            ("sleep", "b-2 is put to sleep (asleep)"),
            ("asleep", "b-2 is asleep on asleep, holds"),
            ("wake", "a-1 was woken on gpu0"),
            ("ready", "a-1 was awake after"),
            ("grant", "a slot of a-1"),
        )
        metrics = (await yard.http.get("/metrics")).text
        assert 'modelyard_instances{model="b",state="asleep"} 1.0' in metrics
        assert 'modelyard_load_seconds_count{model="a",outcome="woken"} 1.0' in metrics


async def test_idle_ones_sleep_and_then_stop() -> None:
    async with yard_of({"a": sleeper(keep_alive="50ms", sleep_keep_alive="200ms")}) as yard:
        await asked(yard, "a")
        await until(lambda: bool(yard.notes("asleep")))
        await until(lambda: not yard.instances("a"))


async def test_what_was_learned_outlives_the_process_that_slept() -> None:
    async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
        for model in "aba":
            await asked(yard, model)
        await yard.unload("a")
        await until(lambda: not yard.instances("a"))
        footprints = yard.driver.footprints
        asleep = [one for one in footprints.changed().values() if one.loads and one.loads[0] < 0.3]
        assert asleep
        assert any(sum(one.bytes) >= 40 * MB for one in asleep), "bytes in host memory were measured"


async def test_what_it_holds_asleep_is_not_taken_for_its_need(monkeypatch: pytest.MonkeyPatch) -> None:
    async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
        observer = yard.driver.observer
        measure, learns = observer.measure, ["a-1"]

        async def late(name: str) -> Mapping[str, int]:
            if name in learns:
                learns.remove(name)
                await until(lambda: bool(yard.notes("asleep")))
            return await measure(name)

        with monkeypatch.context() as patch:
            patch.setattr(observer, "measure", late)
            await asked(yard, "a")
            await asked(yard, "b")
        await until(lambda: bool(yard.driver.footprints.changed()))
        need = only(yard, "a").version.need
        assert need is not None
        assert need.bytes >= SHARE


async def test_one_that_woke_may_take_its_memory_back_by_and_by(monkeypatch: pytest.MonkeyPatch) -> None:
    async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
        for model in "aba":
            await asked(yard, model)
        observer = yard.driver.observer
        measure, hardly_awake = observer.measure, ["a-1"]

        async def early(name: str) -> Mapping[str, int]:
            held = await measure(name)
            if name not in hardly_awake:
                return held
            hardly_awake.remove(name)
            return dict.fromkeys(held, 1)

        monkeypatch.setattr(observer, "measure", early)
        await asked(yard, "b")
        assert state(yard, "a") == "asleep", (
            "it kept nothing, though it held little when it was told to sleep"
        )
        await asked(yard, "a")
        hardly_awake.append("a-1")
        version = only(yard, "a").version
        need = version.need
        await yard.unload("a")
        await until(lambda: not yard.instances("a"))
        assert version.need == need, "what it holds soon after a wake is not what it needs"


async def test_without_room_in_host_memory_it_stops() -> None:
    devices = {**DEVICES, "ram": {"memory": 30 * MB, "reserve": 0}}
    async with yard_of({"a": sleeper(), "b": sleeper()}, devices) as yard:
        for model in "abab":
            await asked(yard, model)
        assert yard.state.sequence == 4


class TestFailures:
    @pytest.mark.parametrize("failure", ["refuse_sleep", "keep_at_sleep"])
    async def test_it_stops_when_it_does_not_sleep(self, failure: str) -> None:
        models = {"a": sleeper(**{failure: True}), "b": sleeper()}
        models["a"]["release_cap"] = "1s"
        async with yard_of(models) as yard:
            await asked(yard, "a")
            await asked(yard, "b")
            assert not yard.instances("a")
            assert yard.notes("no_sleep")

    async def test_it_stops_when_sleep_hangs(self) -> None:
        models = {"a": sleeper(hang_at_sleep=True), "b": sleeper()}
        models["a"]["release_cap"] = "300ms"
        async with yard_of(models) as yard:
            await asked(yard, "a")
            await asked(yard, "b")
            assert yard.notes("no_sleep")
            await until(lambda: not yard.instances("a"))

    async def test_a_new_one_starts_when_it_does_not_wake(self) -> None:
        async with yard_of({"a": sleeper(refuse_wake=True), "b": sleeper()}) as yard:
            await asked(yard, "a")
            await asked(yard, "b")
            assert await asked(yard, "a") == "a-3", "whoever waited is served by a new one"
            assert any("it does not wake" in message for message in yard.notes("failed"))

    async def test_a_new_one_starts_when_it_was_killed_while_it_slept(self) -> None:
        async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
            await asked(yard, "a")
            await asked(yard, "b")
            os.kill(yard.driver.launcher.pids("a-1")[0], signal.SIGKILL)
            await until(lambda: not yard.instances("a"))
            assert yard.state.ledger.devices["ram"].reserved == 0
            assert await asked(yard, "a") == "a-3"

    async def test_one_that_ends_while_its_memory_is_waited_for_is_not_asleep(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
            await asked(yard, "a")
            observer = yard.driver.observer
            given_back = observer.given_back

            async def and_ends(*sleep: Any) -> Mapping[str, int]:
                held = await given_back(*sleep)
                await killed(yard, "a-1")
                return held

            with monkeypatch.context() as patch:
                patch.setattr(observer, "given_back", and_ends)
                await asked(yard, "b")
            assert yard.notes("no_sleep")
            await until(lambda: not yard.instances("a"))

    async def test_one_that_ends_at_once_when_it_sleeps_is_gone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The devices are looked at then."""
        async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
            await asked(yard, "a")
            observer = yard.driver.observer
            look = observer.look

            async def and_ends(**of: Any) -> None:
                if yard.notes("asleep") and yard.driver.launcher.pids("a-1"):
                    await killed(yard, "a-1")
                await look(**of)

            with monkeypatch.context() as patch:
                patch.setattr(observer, "look", and_ends)
                await asked(yard, "b")
                await until(lambda: not yard.instances("a"))

    async def test_one_that_ends_as_it_has_woken_is_not_ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
            await asked(yard, "a")
            await asked(yard, "b")
            commands = yard.driver.commands
            work = commands._unless_it_ends

            async def and_ends(name: str, *of: Any) -> None:
                await work(name, *of)
                if name == "a-1":
                    await killed(yard, name)

            with monkeypatch.context() as patch:
                patch.setattr(commands, "_unless_it_ends", and_ends)
                assert await asked(yard, "a") == "a-3"
            assert len(yard.notes("failed")) == 1
            assert not [message for message in yard.notes("ready") if message.startswith("awake")]

    async def test_a_new_one_serves_when_it_wakes_and_answers_nothing(self) -> None:
        models = {"a": sleeper(hang_after_wake=True), "b": sleeper()}
        models["a"]["token_timeout"] = models["a"]["first_byte_timeout"] = "300ms"
        async with yard_of(models) as yard:
            await asked(yard, "a")
            await asked(yard, "b")
            stream = await yard.stream("a")
            assert (stream.status, stream.text) == (200, right_text("a", "hi", 4))
            assert only(yard, "a").id == "a-3"

    async def test_it_can_be_unloaded_while_it_sleeps(self) -> None:
        async with yard_of({"a": sleeper(), "b": sleeper()}) as yard:
            await asked(yard, "a")
            await asked(yard, "b")
            await yard.unload("a")
            await until(lambda: not yard.instances("a"))
