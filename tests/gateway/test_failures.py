"""Engines that die, hang, refuse to start or to stop: what the client is told, and that nothing is lost.

Each yard of these tests ends with the checks of `live_yard`: no lease, no byte, no process is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from gateway.answers import Answer
from gateway.live_yard import SHARE, LiveYard, body_of, fake, live_yard, right_text
from launchers.process_table import alive
from modelyard.core.state import Version
from modelyard.runtime import endpoint, probes
from modelyard.runtime.commands import TERM_GRACE
from modelyard.wire.pool import Pool
from waiting import until


async def serves(yard: LiveYard, model: str = "a") -> None:
    """The next request is answered as if nothing had been."""
    answer = await yard.chat(model, "and now?")
    assert (answer.status, answer.code) == (200, ""), answer.body
    assert answer.text == right_text(model, "and now?", 4)


async def kill_when_busy(yard: LiveYard, request: asyncio.Task[Answer], number: int) -> str:
    """Send a signal to the engine once it works on a request; returns the instance's name."""
    await until(lambda: bool(yard.leases()))
    (lease,) = yard.state.leases.values()
    instance = lease.instance
    pid = yard.driver.launcher.pids(instance.id)[0]
    assert not request.done()
    os.kill(pid, number)
    return instance.id


class TestDeath:
    async def test_before_the_first_byte_is_retried_on_a_restarted_instance(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            first = await yard.load("a")
            request = asyncio.create_task(yard.chat("a", fake={"delay": 0.3}))
            killed = await kill_when_busy(yard, request, signal.SIGKILL)
            answer = await request
            assert killed == first.id
            assert answer.status == 200, answer.body
            assert answer.text == right_text("a", "hi", 4)
            assert answer.headers["x-modelyard-instance"] != killed

    async def test_before_the_first_byte_is_retried_on_another_replica(self) -> None:
        async with live_yard({"a": fake(min_replicas=2, max_replicas=2)}) as yard:
            await until(lambda: len(yard.state.versions) and len(_only(yard).ready) == 2)
            other = {instance.id for instance in _only(yard).ready}
            request = asyncio.create_task(yard.chat("a", fake={"delay": 0.3}))
            killed = await kill_when_busy(yard, request, signal.SIGKILL)
            answer = await request
            assert answer.status == 200, answer.body
            assert answer.headers["x-modelyard-instance"] in other - {killed}

    async def test_of_every_instance_that_is_tried_is_a_502(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            answer = await yard.chat("a", fake={"crash": True})
            assert answer.status == 502
            assert answer.code in ("engine_died", "engine_unreachable"), answer.code
            assert answer.message.startswith("a-"), "it names the instance"
            await serves(yard)

    async def test_after_the_first_byte_ends_the_stream_with_an_error(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            stream = await yard.stream("a", tokens=8, fake={"crash_after_tokens": 3})
            assert stream.status == 200
            assert stream.code == "engine_died"
            assert stream.errors[0]["message"].startswith("a-1 ")
            assert not stream.done
            assert stream.left == ""
            assert stream.text == right_text("a", "hi", 3)
            await serves(yard)

    async def test_in_the_middle_of_an_event_sends_no_half_of_it(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            stream = await yard.stream("a", tokens=8, fake={"crash_mid_event": 3})
            assert stream.code == "engine_died"
            assert not stream.done
            assert stream.left == ""
            assert stream.text == right_text("a", "hi", 2)
            await serves(yard)

    @pytest.mark.parametrize("which", [0, -1], ids=["engine", "shim"])
    async def test_takes_along_what_the_engine_forked(self, which: int) -> None:
        async with live_yard({"a": fake(parameters={"fork_grandchild": True})}) as yard:
            await yard.load("a")
            pids = yard.pids("a")
            assert len(pids) > 2, "the engine forked"
            os.kill(pids[which], signal.SIGKILL)
            await until(lambda: not any(alive(pid) for pid in pids), 10.0)
            await until(lambda: not yard.reserved(), 10.0)
            await serves(yard)

    @pytest.mark.parametrize("which", [0, -1], ids=["engine", "shim"])
    async def test_under_a_request_is_never_told_as_a_hang(self, which: int) -> None:
        async with live_yard({"a": fake(slots=2)}) as yard:
            await yard.load("a")
            requests = [asyncio.create_task(yard.chat("a", fake={"delay": 0.3})) for _ in range(2)]
            await until(lambda: yard.leases() == 2)
            os.kill(yard.pids("a")[which], signal.SIGKILL)
            assert [answer.status for answer in await asyncio.gather(*requests)] == [200, 200]
            (said,) = yard.notes("failed")
            assert said.startswith("killed: killed by signal 9\n")


def _only(yard: LiveYard) -> Version:
    (version,) = yard.state.versions.values()
    return version


def looks(monkeypatch: pytest.MonkeyPatch) -> list[probes.Health]:
    """What probes find from now on."""
    found: list[probes.Health] = []
    look = probes.look

    async def told(pool: Pool, path: str) -> probes.Health:
        found.append(await look(pool, path))
        return found[-1]

    monkeypatch.setattr(probes, "look", told)
    return found


class TestHang:
    async def test_before_the_first_byte_is_retried_on_a_new_instance(self) -> None:
        async with live_yard({"a": fake(first_byte_timeout="300ms")}) as yard:
            first = await yard.load("a")
            engine = yard.pids("a")[0]
            os.kill(engine, signal.SIGSTOP)
            stream = await yard.stream("a")
            assert (stream.status, stream.code) == (200, "")
            assert stream.text == right_text("a", "hi", 4)
            assert stream.done
            assert stream.headers["x-modelyard-instance"] != first.id
            await until(lambda: not alive(engine))

    async def test_of_every_instance_that_is_tried_is_a_504(self) -> None:
        async with live_yard({"a": fake(first_byte_timeout="200ms")}) as yard:
            stream = await yard.stream("a", fake={"hang": True})
            assert (stream.status, stream.refusal.code) == (504, "first_byte_timeout")
            assert "sent nothing for first_byte_timeout 0.2 s" in stream.refusal.message
            await serves(yard)

    async def test_of_an_answer_that_is_no_stream_ends_at_the_request_timeout(self) -> None:
        async with live_yard({"a": fake(request_timeout="400ms")}) as yard:
            first = await yard.load("a")
            engine = yard.pids("a")[0]
            os.kill(engine, signal.SIGSTOP)
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (504, "request_deadline")
            assert f"{first.id} did not finish within request_timeout 0.4 s" in answer.message
            assert answer.headers["x-should-retry"] == "false"
            await until(lambda: not alive(engine))
            assert any("health check does not answer" in message for message in yard.notes("failed"))
            await serves(yard)

    async def test_of_an_answer_that_is_no_stream_is_retried_on_a_new_instance(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probes, "PROBE_TIMEOUT", 0.2)
        async with live_yard({"a": fake(first_byte_timeout="300ms")}) as yard:
            first = await yard.load("a")
            engine = yard.pids("a")[0]
            os.kill(engine, signal.SIGSTOP)
            answer = await asyncio.wait_for(yard.chat("a"), 10.0)
            assert (answer.status, answer.text) == (200, right_text("a", "hi", 4)), answer.body
            assert answer.headers["x-modelyard-instance"] != first.id
            assert not alive(engine)
            assert yard.notes("failed") == ["hung: its health check does not answer"]

    async def test_is_found_though_an_earlier_probe_cleared_the_instance(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probes, "PROBE_TIMEOUT", 0.3)
        found = looks(monkeypatch)
        async with live_yard({"a": fake(first_byte_timeout="200ms")}) as yard:
            await yard.load("a")
            request = asyncio.create_task(yard.chat("a", fake={"delay": 1.0}))
            await until(lambda: found == [probes.Health.ANSWERS])
            killed = await kill_when_busy(yard, request, signal.SIGSTOP)
            answer = await asyncio.wait_for(request, 10.0)
            assert answer.status == 200, answer.body
            assert answer.headers["x-modelyard-instance"] != killed

    async def test_of_an_engine_that_is_at_work_is_cleared_by_its_probe(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = looks(monkeypatch)
        async with live_yard({"a": fake(first_byte_timeout="200ms")}) as yard:
            first = await yard.load("a")
            answer = await yard.chat("a", fake={"delay": 1.0})
            assert (answer.status, answer.headers["x-modelyard-instance"]) == (200, first.id)
            assert (first.strikes, first.suspect) == (0, False)
            assert set(found) == {probes.Health.ANSWERS}

    async def test_is_found_though_its_client_leaves_early(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probes, "PROBE_TIMEOUT", 0.2)
        async with live_yard({"a": fake()}) as yard:
            first = await yard.load("a")
            engine = yard.pids("a")[0]
            os.kill(engine, signal.SIGSTOP)
            with pytest.raises(httpx.ReadTimeout):
                await yard.http.post(
                    "/v1/chat/completions", json=body_of("a", "hi", 4, False, {}), timeout=0.2
                )
            await until(lambda: not alive(engine), 10.0)
            answer = await yard.chat("a")
            assert (answer.status, answer.text) == (200, right_text("a", "hi", 4))
            assert answer.headers["x-modelyard-instance"] != first.id

    async def test_of_an_answer_condemns_an_instance_that_goes_on_for_nobody(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though it is well by its probe."""
        monkeypatch.setattr(endpoint, "QUIESCE_CAP", 0.1)
        async with live_yard({"a": fake(request_timeout="200ms")}) as yard:
            await yard.load("a")
            engine = yard.pids("a")[0]
            answer = await yard.chat("a", fake={"hang": True})
            assert (answer.status, answer.code) == (504, "request_deadline")
            await until(lambda: not alive(engine))
            await serves(yard)

    async def test_of_an_answer_beside_others_that_come_does_not_condemn_the_instance(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(endpoint, "QUIESCE_CAP", 0.1)
        async with live_yard({"a": fake(request_timeout="1s", slots=2)}) as yard:
            instance = await yard.load("a")
            hung = asyncio.create_task(yard.chat("a", fake={"hang": True}))
            await until(lambda: yard.leases() == 1)
            assert (await yard.chat("a")).status == 200
            assert (await hung).code == "request_deadline"
            await until(lambda: instance.strikes == 1)
            assert yard.ready("a") is instance

    async def test_between_tokens_ends_the_stream_with_an_error(self) -> None:
        async with live_yard({"a": fake(token_timeout="300ms")}) as yard:
            await yard.load("a")
            engine = yard.pids("a")[0]
            stream = await yard.stream("a", tokens=8, fake={"hang_after_tokens": 3})
            assert stream.code == "token_timeout"
            assert "sent no token for token_timeout 0.3 s" in stream.errors[0]["message"]
            assert not stream.done
            assert stream.left == ""
            assert stream.text == right_text("a", "hi", 3)
            await until(lambda: not alive(engine))
            await serves(yard)

    async def test_of_requests_while_health_is_fine_condemns_the_instance(self) -> None:
        # The second generation is the first after the warm-up.
        model = fake(first_byte_timeout="200ms", parameters={"hang_on_request": 2})
        async with live_yard({"a": model}) as yard:
            await yard.load("a")
            engine = yard.pids("a")[0]
            stream = await yard.stream("a")
            assert (stream.status, stream.refusal.code) == (504, "first_byte_timeout")
            await until(lambda: not alive(engine))
            assert any("hung" in message for message in yard.notes("failed"))


class TestStart:
    async def test_of_a_bad_model_is_a_503_with_its_last_words(self) -> None:
        model = fake(parameters={"exit_code": 3, "exit_log": "error: failed to load model: bad magic"})
        async with live_yard({"a": model}) as yard:
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "cannot_load")
            assert "a did not start: bad_model: exit code 3" in answer.message
            assert "error: failed to load model: bad magic" in answer.message
            assert answer.headers["x-should-retry"] == "false"
            assert "retry-after" not in answer.headers
            again = await yard.chat("a")
            assert (again.status, again.code, again.message) == (503, "cannot_load", answer.message)
            assert yard.state.sequence == 1, "a model that backs off is not started for a request"

    async def test_of_a_program_that_went_away_is_not_tried_again(self, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.symlink_to(sys.executable)
        engines = {"broken": {"type": "fake", "program": str(program)}}
        async with live_yard({"a": {**fake(), "engine": "broken"}}, engines=engines) as yard:
            program.unlink()
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "cannot_load")
            assert f"not_installed: {program} cannot be executed: No such file" in answer.message
            assert yard.state.sequence == 1

    async def test_that_is_killed_from_outside_is_tried_three_times(self) -> None:
        async with live_yard({"a": fake(parameters={"load_time": 60.0})}) as yard:
            request = asyncio.create_task(yard.chat("a"))
            for number in (1, 2, 3):
                await until(lambda number=number: len(yard.driver.launcher.pids(f"a-{number}")) > 1)  # type: ignore[misc]
                assert not request.done()
                os.kill(yard.driver.launcher.pids(f"a-{number}")[0], signal.SIGKILL)
            answer = await request
            assert (answer.status, answer.code) == (503, "load_failed")
            assert "a did not start: killed: killed by signal 9" in answer.message

    async def test_that_crashes_is_tried_twice(self) -> None:
        model = fake(parameters={"exit_code": 3, "exit_log": "error: the moon is full"})
        async with live_yard({"a": model}) as yard:
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "load_failed")
            assert int(answer.headers["retry-after"]) >= 1
            assert "crashed: exit code 3" in answer.message
            assert "error: the moon is full" in answer.message
            assert yard.state.sequence == 2

    async def test_without_enough_memory_is_retried_once_with_more(self) -> None:
        async with live_yard({"a": fake(parameters={"oom_at_load": True})}) as yard:
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "load_failed")
            assert "out_of_memory" in answer.message
            assert yard.state.sequence == 2
            assert f"needs {SHARE * 5 // 4} bytes" in yard.notes("need")[0]

    async def test_that_needs_more_than_there_is_never_fits(self) -> None:
        model = fake(2 * SHARE, parameters={"oom_at_load": True})
        async with live_yard({"a": model}, memory=2 * SHARE) as yard:
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "never_fits")
            assert "can never fit" in answer.message
            assert answer.headers["x-should-retry"] == "false"
            assert "retry-after" not in answer.headers
            assert yard.state.sequence == 1

    async def test_ends_at_its_deadline(self) -> None:
        async with live_yard({"a": fake(load_cap="300ms", parameters={"load_time": 30.0})}) as yard:
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "load_failed")
            assert "start_deadline: not ready within load_cap 0.3 s" in answer.message

    async def test_that_never_generates_ends_at_its_deadline(self) -> None:
        model = fake(load_cap="1s", parameters={"health_ok_but_requests_hang": True})
        async with live_yard({"a": model}) as yard:
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "load_failed")
            assert "start_deadline" in answer.message

    async def test_with_a_flood_of_output_is_served_and_bounded(self) -> None:
        async with live_yard({"a": fake(parameters={"flood_output": 20_000_000})}) as yard:
            instance = await yard.load("a")
            log = yard.driver.launcher.log(instance.id)
            assert log is not None
            assert log.stat().st_size <= 4 * 1024 * 1024
            await serves(yard)


class TestStop:
    async def test_of_an_engine_that_ignores_it_ends_with_a_kill(self) -> None:
        async with live_yard({"a": fake(parameters={"ignore_sigterm": True})}) as yard:
            await yard.load("a")
            pids = yard.pids("a")
            await yard.unload("a")
            assert not any(alive(pid) for pid in pids)
            assert yard.reserved() == 0

    async def test_now_kills_at_once(self) -> None:
        async with live_yard({"a": fake(parameters={"ignore_sigterm": True})}) as yard:
            await yard.load("a")
            pids = yard.pids("a")
            async with asyncio.timeout(TERM_GRACE / 2):
                await yard.unload("a", now=True)
            assert not any(alive(pid) for pid in pids)
            assert yard.reserved() == 0

    async def test_takes_what_the_engine_forked_along(self) -> None:
        async with live_yard({"a": fake(parameters={"fork_grandchild": True})}) as yard:
            await yard.load("a")
            pids = yard.pids("a")
            assert len(pids) == 3
            await yard.unload("a")
            assert not any(alive(pid) for pid in pids)

    async def test_while_streaming_finishes_the_stream(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            order = {"tokens_per_second": 40}
            async with yard.open_stream("a", tokens=20, fake=order) as (stream, more):
                await anext(more)
                unloading = asyncio.create_task(yard.unload("a"))
                async for _ in more:
                    pass
            assert stream.done
            assert stream.text == right_text("a", "hi", 20)
            await unloading
            assert yard.reserved() == 0

    async def test_at_the_drain_cap_cuts_the_stream_with_an_error(self) -> None:
        models = {"a": fake(drain_cap="200ms"), "b": fake()}
        async with live_yard(models, memory=SHARE) as yard:
            await yard.load("a")
            async with yard.open_stream("a", tokens=1000, fake={"tokens_per_second": 20}) as (stream, more):
                await anext(more)
                other = asyncio.create_task(yard.chat("b"))
                async for _ in more:
                    pass
            assert stream.code == "cut_at_drain"
            assert "had to leave: the drain cap passed" in stream.errors[0]["message"]
            assert not stream.done
            assert stream.left == ""
            assert (await other).status == 200

    async def test_at_the_drain_cap_retries_what_has_not_begun(self) -> None:
        models = {"a": fake(drain_cap="200ms"), "b": fake()}
        async with live_yard(models, memory=SHARE) as yard:
            first = await yard.load("a")
            cut = asyncio.create_task(yard.chat("a", fake={"delay": 0.8}))
            await until(lambda: yard.leases() == 1)
            other = await yard.chat("b")
            assert other.status == 200, other.body
            answer = await cut
            assert answer.status == 200, answer.body
            assert answer.text == right_text("a", "hi", 4)
            assert answer.headers["x-modelyard-instance"] != first.id


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_error_of_the_engine_is_passed_on_after_the_retries(streaming: bool) -> None:
    async with live_yard({"a": fake()}) as yard:
        if streaming:
            stream = await yard.stream("a", fake={"status": 500})
            assert stream.status == 502
        else:
            answer = await yard.chat("a", fake={"status": 500})
            assert (answer.status, answer.message) == (502, "failure on order")
        await serves(yard)
