"""What comes before an instance is ready, how it fails, and how long it is known to take."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from compose.test_refused_starts import GGUF
from gateway.live_yard import LiveYard, fake, live_yard, running, sections, short_folder
from modelyard import compose, config
from modelyard.core.types import Address
from modelyard.engines.openai_http import post
from modelyard.runtime import probes
from modelyard.runtime import read_ahead as reading
from modelyard.wire.pool import Pool
from waiting import until
from wire.raw_engines import OK, Peer, engine


def warmed(parameters: dict[str, Any] | None = None, **warm_up: Any) -> dict[str, Any]:
    return fake(parameters=parameters or {}, slots=2, warm_up=warm_up)


async def view(yard: LiveYard, model: str = "a") -> dict[str, Any]:
    (found,) = (one for one in (await yard.http.get("/admin/models")).json() if one["id"] == model)
    return dict(found)


class TestReady:
    @pytest.mark.parametrize(("hangs", "ready"), [(5, True), (4, False), (2, False)])
    async def test_is_what_generated_all_prompts_and_prefixes(self, hangs: int, ready: bool) -> None:
        """Two prompts, and the prefix once for each of two slots."""
        model = warmed({"hang_on_request": hangs}, prompts=["Hello", "Hi"], prefixes=["Be brief."])
        async with live_yard({"a": {**model, "load_cap": "1s"}}) as yard:
            answer = await yard.post("/admin/models/a/load")
            assert (answer.status == 200) is ready, answer.body

    async def test_is_none_whose_prompt_is_refused(self) -> None:
        model = warmed({"context": 8}, prompts=["Hi", "one two three four five six seven eight nine ten"])
        async with live_yard({"a": model}) as yard:
            answer = await yard.post("/admin/models/a/load")
            assert answer.status == 503
            error = (await view(yard))["error"]
            assert "warm_up.prompts[1] was answered with 400" in error
            assert yard.state.sequence == 1, "another try would be refused as well"

    async def test_is_refused_with_more_prefixes_than_slots(self) -> None:
        with short_folder() as folder:
            read = config.load(None, sections(folder, {"a": warmed(prefixes=["a", "b", "c"])}))
            with pytest.raises(config.ConfigErrors) as refused:
                await compose.build(read)
        (problem,) = refused.value.problems
        assert problem.path == "models.a.warm_up.prefixes"
        assert "2 slots" in problem.message


class TestReadingAhead:
    @pytest.mark.parametrize("wanted", [True, False])
    async def test_begins_with_the_start_unless_it_is_told_not_to(
        self, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[tuple[list[Path], int]] = []

        def note(files: list[Path], room: int, stop: threading.Event) -> int:
            read.append((files, room))
            return 0

        monkeypatch.setattr(reading, "read_ahead", note)
        source = tmp_path / "model.gguf"
        source.write_bytes(GGUF)
        model = {"engine": "llamacpp", "source": str(source), "devices": ["ram"]}
        async with live_yard({"m": {**model, "warm_up": {"read_ahead": wanted}}}) as yard:
            assert (await yard.post("/admin/models/m/load")).status == 503, "it is no model"
        assert [files for files, _ in read] == [[source]] * wanted
        assert all(room > 0 for _, room in read)


class TestCalls:
    async def test_are_all_made_unless_one_is_late(self) -> None:
        seen, fast = 0, 3

        async def answer(peer: Peer) -> None:
            nonlocal seen
            while await peer.request():
                seen += 1
                if seen > fast:
                    await asyncio.Event().wait()
                await peer.send(OK)

        calls = [post("/v1/completions", {}, f"warm_up.prompts[{number}]") for number in range(3)]
        async with engine(answer) as found:
            await warm(found.address, calls, 20.0)
            assert seen == 3
            fast = 4
            with pytest.raises(TimeoutError, match=r"warm_up.prompts\[1\] took too long"):
                await warm(found.address, calls, 0.0)
        assert seen == 5


async def warm(address: Address, calls: list[Any], seconds: float) -> None:
    pool = Pool(address)
    try:
        await probes.warm_up(pool, calls, asyncio.get_running_loop().time() + seconds)
    finally:
        pool.close()


class TestTimes:
    @pytest.mark.parametrize("memory", [4_000_000, 0])
    async def test_of_loads_and_first_answers_are_shown(self, memory: int) -> None:
        async with live_yard({"a": fake(memory)}) as yard:
            await yard.load("a")
            for _ in range(2):
                await yard.stream("a")
            await until(lambda: timed(yard) == (1, 1))
            await yard.unload("a")
            await yard.load("a")
            await until(lambda: timed(yard) == (2, 1))
            await yard.chat("a")
            await yard.stream("a")
            await until(lambda: timed(yard) == (2, 2))
            shown = await view(yard)
            assert shown["load_time"]["count"] == 2
            assert shown["load_time"]["median"] > 0
            assert shown["first_token_time"]["count"] == 2

    async def test_are_known_after_a_restart(self) -> None:
        with short_folder() as folder:
            first = await yard_in(folder)
            async with running(first, folder):
                assert version(first).load_seconds is None
                await first.load("a")
                await first.stream("a")
                await until(lambda: timed(first) == (1, 1))
                known = version(first).load_seconds
            second = await yard_in(folder)
            async with running(second, folder):
                assert known is not None
                assert version(second).load_seconds == pytest.approx(known)

    async def test_until_the_first_token_are_in_the_expected_end_of_a_wait(self) -> None:
        slow = fake(parameters={"first_token_time": 0.4})
        async with live_yard({"a": slow}) as yard:
            await yard.load("a")
            await yard.stream("a")
            await until(lambda: timed(yard) == (1, 1))
            (entry,) = yard.driver.entries.values()
            _, first_token = yard.driver.observer.timings(entry)
            assert first_token is not None
            assert first_token.median > 0.35
            await yard.unload("a")
            await until(lambda: not yard.instances("a"))
            load = version(yard).load_seconds
            assert load is not None
            stream = await yard.stream("a", headers={"X-Progress": "sse"})
            assert stream.progress[0]["eta"] == pytest.approx(load + first_token.median, abs=0.3)
            assert stream.progress[0]["eta"] > first_token.median


async def yard_in(folder: Path) -> LiveYard:
    text = sections(folder, {"a": fake()})
    return LiveYard(await compose.build(config.load(None, text)), folder / "yard.sock")


def version(yard: LiveYard) -> Any:
    (found,) = yard.state.versions.values()
    return found


def timed(yard: LiveYard) -> tuple[int, int]:
    """How many loads and first answers were timed."""
    (entry,) = yard.driver.entries.values()
    load, first = yard.driver.observer.timings(entry)
    return (load.count if load else 0, first.count if first else 0)
