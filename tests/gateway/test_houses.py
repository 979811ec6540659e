"""The houses of the examples, run whole: declared GPUs of 24 GB at a thousandth, of which engines really take
their part. A device is lost under load, or fenced, and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.live_yard import QUICK, LiveYard, body_of, running, short_folder
from modelyard import compose, config
from modelyard.core.lifecycle import InstanceState
from modelyard.runtime.devices.declared import LOST
from waiting import until

EXAMPLES = Path(__file__).parents[2] / "examples"
GB = 1_000_000_000


@asynccontextmanager
async def house(example: str, **models: Any) -> AsyncIterator[LiveYard]:
    """The example as it is, at a test's pace; `models` replaces those it has."""
    with short_folder() as folder:
        text = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())
        text |= {
            "server": {"unix": str(folder / "yard.sock"), "data_dir": str(folder / "data")},
            "memory": {"recheck": "50ms"},
            "defaults": dict(QUICK),
        }
        text["models"] = models or text["models"]
        yard = await compose.build(config.load(None, yaml.safe_dump(text)), check_invariants=True)
        live = LiveYard(yard, folder / "yard.sock")
        async with running(live, folder):
            yield live


def where(live: LiveYard) -> dict[str, list[list[str]]]:
    """The devices of the ready instances of each model."""
    found: dict[str, list[list[str]]] = {}
    for one in live.state.instances.values():
        if one.state is InstanceState.READY:
            devices = [charge.device for charge in one.placement]
            found.setdefault(one.version.spec.model, []).append(sorted(devices))
    return {model: sorted(places) for model, places in found.items()}


def pool(live: LiveYard, device: str) -> Path:
    declared = live.driver.devices._declared
    assert declared is not None
    return declared.pools / device


def taken(live: LiveYard, device: str) -> int:
    """The bytes of host memory that really stand for what the device holds."""
    return sum(path.stat().st_size for path in pool(live, device).glob("*.mem"))


def lose(live: LiveYard, device: str) -> None:
    (pool(live, device) / LOST).write_text("it fell off the bus")


def find(live: LiveYard, device: str) -> None:
    (pool(live, device) / LOST).unlink()


async def health(live: LiveYard) -> Mapping[str, Any]:
    answer: Mapping[str, Any] = (await live.http.get("/health")).json()
    return answer


async def ask(live: LiveYard, model: str, stop: asyncio.Event, outcomes: Counter[int]) -> None:
    """Ask, again and again, until it is enough."""
    while not stop.is_set():
        answer = await live.chat(model, "hello", tokens=2)
        outcomes[answer.status] += 1


@asynccontextmanager
async def under_load(live: LiveYard, models: Mapping[str, int]) -> AsyncIterator[Counter[int]]:
    """So many clients for each model, all the while; what came of their requests, by status."""
    stop, outcomes = asyncio.Event(), Counter[int]()
    async with asyncio.TaskGroup() as clients:
        for model, count in models.items():
            for _ in range(count):
                clients.create_task(ask(live, model, stop, outcomes))
        yield outcomes
        stop.set()


async def some_more(outcomes: Counter[int], count: int) -> None:
    enough = outcomes.total() + count
    await until(lambda: outcomes.total() >= enough)


async def test_two_models_on_two_gpus_of_which_one_is_lost() -> None:
    async with house("two-24gb-gpus") as live:
        await until(lambda: len(where(live)) == 2)
        assert where(live) == {"llama2:7b": [["gpu0"]], "llama2:7b-instruct": [["gpu1"]]}
        assert taken(live, "gpu0") == taken(live, "gpu1") == 22_500_000, "a thousandth, really"
        devices = {one["id"]: one for one in (await live.http.get("/admin/devices")).json()}
        assert devices["gpu1"]["observed"] in (0, 22_500_000_000)
        async with under_load(live, {"llama2:7b": 2, "llama2:7b-instruct": 2}) as outcomes:
            await some_more(outcomes, 20)
            async with live.open_stream("llama2:7b-instruct", tokens=400, fake={"tokens_per_second": 20}) as (
                begun,
                more,
            ):
                await anext(more)
                lose(live, "gpu1")
                async for _ in more:
                    pass
            assert begun.code == "device_lost", "it had begun"
            assert "gpu1 is lost: it fell off the bus" in begun.errors[0]["message"]
            await some_more(outcomes, 30)
            told = await health(live)
            assert (told["status"], told["devices"]) == ("degraded", {"gpu1": "lost: it fell off the bus"})
            assert all(places == [["gpu0"]] for places in where(live).values()), "they take turns there"
            find(live, "gpu1")
            await until(lambda: set(map(str, where(live).values())) == {"[['gpu0']]", "[['gpu1']]"})
            await some_more(outcomes, 10)
        assert set(outcomes) == {200}, "whoever had not begun was answered"
        assert (await health(live))["status"] == "ok"
        story = (await live.http.get("/admin/explain/llama2:7b-instruct")).json()["story"]
        assert any("device_lost: gpu1 is lost" in line["text"] for line in story), story


async def test_two_replicas_over_two_gpus_each_of_which_one_goes_whole() -> None:
    async with house("four-gpus-dp-mp") as live:
        await until(lambda: len(where(live).get("llama2:13b", [])) == 2)
        assert where(live) == {"llama2:13b": [["gpu0", "gpu2"], ["gpu1", "gpu3"]]}, "linked GPUs together"
        assert {taken(live, f"gpu{n}") for n in range(4)} == {20_200_000}
        async with under_load(live, {"llama2:13b": 6}) as outcomes:
            await some_more(outcomes, 20)
            lose(live, "gpu3")
            await until(lambda: where(live)["llama2:13b"] == [["gpu0", "gpu2"]])
            await some_more(outcomes, 30)
            await until(lambda: taken(live, "gpu1") == 0, deadline=10.0)
            find(live, "gpu3")
            await until(lambda: len(where(live)["llama2:13b"]) == 2)
            await some_more(outcomes, 10)
        assert set(outcomes) == {200}


async def test_a_fenced_gpu_is_left_without_a_loss() -> None:
    async with house("two-24gb-gpus") as live:
        await until(lambda: len(where(live)) == 2)
        async with under_load(live, {"llama2:7b": 2, "llama2:7b-instruct": 2}) as outcomes:
            await some_more(outcomes, 10)
            answer = await live.post("/admin/devices/gpu1/fence", {"reason": "a new fan"})
            assert (answer.status, answer.body["closed"]) == (200, "fenced: a new fan")
            await until(lambda: taken(live, "gpu1") == 0)
            await some_more(outcomes, 20)
            assert (await health(live))["devices"] == {"gpu1": "fenced: a new fan"}
            metrics = (await live.http.get("/metrics")).text
            assert 'modelyard_device_closed{device="gpu1"} 1.0' in metrics
            assert (await live.post("/admin/devices/gpu1/unfence")).body["closed"] == ""
            await until(lambda: taken(live, "gpu1") > 0)
        assert set(outcomes) == {200}
        assert (await live.post("/admin/devices/gpu9/fence")).status == 404


async def test_a_gpu_that_reports_a_fatal_error_is_left_at_once_and_fenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house("two-24gb-gpus") as live:
        await until(lambda: len(where(live)) == 2)
        reported = [{}, {"gpu1": "XID 79"}]
        monkeypatch.setattr(live.driver.devices, "faults", lambda: reported.pop() if reported else {})
        async with under_load(live, {"llama2:7b": 2, "llama2:7b-instruct": 2}) as outcomes:
            await some_more(outcomes, 10)
            for _ in range(3):
                await live.driver.observer.look()
            assert (await health(live))["devices"] == {"gpu1": "fenced: XID 79: reset it, then unfence it"}
            await until(lambda: taken(live, "gpu1") == 0)
            await some_more(outcomes, 20)
            assert (await live.post("/admin/devices/gpu1/unfence")).body["closed"] == ""
            await until(lambda: taken(live, "gpu1") > 0)
        assert set(outcomes) == {200}
        assert any("device_lost: gpu1 is lost: XID 79" in told for told in live.notes("failed"))


REPLICAS = {
    "engine": "fake",
    "slots": 8,
    "replicas": 4,
    "parameters": {"memory": {"accelerator": 20 * GB}},
}


async def served(live: LiveYard, count: int, clients: int = 16) -> Counter[str]:
    """So many requests from so many clients; how many each instance answered."""
    shares, left = Counter[str](), iter(range(count))
    body = json.dumps(body_of("many", "hi", 1, False, {})).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body

    async def client() -> None:
        reader, writer = await asyncio.open_unix_connection(live.socket)
        for _ in left:
            writer.write(request)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert answer.startswith("http/1.1 200"), answer
            fields = dict(line.split(": ", 1) for line in answer.split("\r\n")[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
            shares[fields["x-modelyard-instance"]] += 1
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(clients)))
    return shares


def even(shares: Counter[str]) -> None:
    assert len(shares) == 4
    mean = shares.total() / 4
    assert all(abs(share - mean) <= 0.02 * mean for share in shares.values()), shares


@pytest.mark.timeout(240)
async def test_replicas_share_evenly_also_after_one_was_killed() -> None:
    async with house("four-gpus-dp-mp", many=REPLICAS) as live:
        await until(lambda: len(where(live).get("many", [])) == 4)
        assert where(live)["many"] == [[f"gpu{n}"] for n in range(4)], "each on a device of its own"
        even(await served(live, 10_000))
        async with under_load(live, {"many": 8}) as outcomes:
            await some_more(outcomes, 50)
            killed = live.pids("many")[0]
            os.kill(killed, signal.SIGKILL)
            await until(lambda: len(where(live)["many"]) == 3)
            await until(lambda: len(where(live)["many"]) == 4)
            await some_more(outcomes, 50)
        assert set(outcomes) == {200}, "nothing is lost"
        await served(live, 1000)  # the others catch up with what they missed meanwhile
        even(await served(live, 2000))


async def test_what_begins_alike_goes_to_one_replica_where_that_is_asked_for() -> None:
    async with house("four-gpus-dp-mp", many={**REPLICAS, "affinity": "prefix"}) as live:
        await until(lambda: len(where(live).get("many", [])) == 4)

        async def homes(*beginnings: str) -> set[str]:
            found = set()
            for number in range(6):
                messages = [{"role": "system", "content": text} for text in beginnings]
                messages += [{"role": "user", "content": "hi"}, {"role": "user", "content": str(number)}]
                body = {"model": "many", "messages": messages, "max_tokens": 1}
                answer = await live.post("/v1/chat/completions", body)
                found.add(answer.headers["x-modelyard-instance"])
            return found

        each = [await homes(f"You are number {number}.") for number in range(12)]
        assert all(len(found) == 1 for found in each), each
        assert len(set.union(*each)) > 1, "different beginnings are spread"
