"""Batches of many requests, over a back end that is told when to go on: it translates by upper case."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from modelyard.errors import ShuttingDown
from modelyard.servers import gathering
from modelyard.servers.translation import batching
from modelyard.servers.translation.backends import Broken, OutOfMemory, Output, Segment
from modelyard.servers.translation.batching import Batching, Full
from modelyard.servers.translation.room import Measured
from waiting import until

WAIT = 30.0  # seconds; so long that a batch which is gathered for its time fails the test


class Shouting:
    """A back end whose memory holds `fits` tokens, padding included."""

    device = "cpu"
    longest = 1000
    languages = ("en", "fr")
    pairs = (("en", "fr"),)

    def __init__(self, fits: int = 10_000, replicas: int = 1) -> None:
        self.replicas = replicas
        self.fits = fits
        self.go = threading.Event()
        self.go.set()
        self.batches: list[list[str]] = []
        self.asked: list[tuple[int, int, int]] = []
        self.broken = ""

    def segment(self, text: str, source: str, target: str) -> Segment:
        return Segment(source, target, tuple(text))

    def run(
        self, batch: Sequence[Segment], *, beam_size: int = 1, max_output: int = 256, alternatives: int = 0
    ) -> list[Output]:
        texts = ["".join(segment.tokens) for segment in batch]
        self.batches.append(texts)
        self.asked.append((beam_size, max_output, alternatives))
        assert self.go.wait(10)
        if self.broken:
            raise RuntimeError(self.broken)
        if max(map(len, texts)) * len(texts) > self.fits:
            raise OutOfMemory("no memory")
        if any("!" in text for text in texts):
            raise ValueError("it has a !")
        return [Output(text.upper(), len(text)) for text in texts]

    def close(self) -> None:
        pass


@asynccontextmanager
async def batched(backend: Shouting, most: int = 100, max_wait: float = WAIT) -> AsyncIterator[Batching]:
    failed: list[str] = []
    made = Batching(
        backend, Measured(None, most), lambda longest: 2 * longest, max_wait=max_wait, failed=failed.append
    )
    try:
        yield made
    finally:
        backend.go.set()
        await made.close()


def segments(*texts: str) -> list[Segment]:
    return [Segment("en", "fr", tuple(text)) for text in texts]


async def said(of: Batching, *texts: str, alternatives: int = 0) -> list[str]:
    outputs = await of.translate(segments(*texts), alternatives)
    return [one.text if isinstance(one, Output) else type(one).__name__ for one in outputs]


async def test_requests_go_together_sorted_and_each_has_its_own_answers() -> None:
    backend = Shouting()
    async with batched(backend, max_wait=0.05) as made:
        answers = await asyncio.gather(said(made, "ccc", "a"), said(made, "bb", "dddd"), said(made, "ee"))
    assert [*answers] == [["CCC", "A"], ["BB", "DDDD"], ["EE"]]
    assert backend.batches == [["a", "bb", "ee", "ccc", "dddd"]]


async def test_the_first_waits_for_others_no_longer_than_it_is_told() -> None:
    backend = Shouting()
    async with batched(backend, max_wait=0.02) as made:
        began = asyncio.get_running_loop().time()
        assert await said(made, "a") == ["A"]
        assert 0.015 <= asyncio.get_running_loop().time() - began < 5
        first = asyncio.create_task(said(made, "bb"))
        await until(lambda: made.waiting == 1)
        assert await said(made, "c") == ["C"]
        assert await first == ["BB"]
    assert backend.batches == [["a"], ["c", "bb"]]


async def test_a_full_batch_waits_for_nobody() -> None:
    async with batched(Shouting(), most=3) as made:
        assert await said(made, "abc") == ["ABC"]


async def test_what_comes_while_a_batch_runs_goes_together_after_it() -> None:
    backend = Shouting()
    backend.go.clear()
    async with batched(backend, most=10, max_wait=0.0) as made:
        first = asyncio.create_task(said(made, "first"))
        await until(lambda: len(backend.batches) == 1)
        more = [asyncio.create_task(said(made, text)) for text in ("ddd", "bb", "cc")]
        await until(lambda: made.waiting == 3)
        assert made.running == 1
        backend.go.set()
        assert [await one for one in (first, *more)] == [["FIRST"], ["DDD"], ["BB"], ["CC"]]
        counts = made.counts
    assert backend.batches == [["first"], ["bb", "cc", "ddd"]]
    assert (counts.batches, counts.segments, counts.tokens, counts.padded) == (2, 4, 12, 14)


async def test_replicas_take_batches_as_they_are_free() -> None:
    backend = Shouting(replicas=2)
    backend.go.clear()
    async with batched(backend, most=4, max_wait=0.0) as made:
        asking = [asyncio.create_task(said(made, text)) for text in ("aaaa", "bbbb", "cccc")]
        await until(lambda: len(backend.batches) == 2)
        assert made.waiting == 1
        backend.go.set()
        assert [await one for one in asking] == [["AAAA"], ["BBBB"], ["CCCC"]]


async def test_who_asks_again_on_an_answer_goes_with_those_that_waited() -> None:
    backend = Shouting()
    backend.go.clear()

    async def two(made: Batching) -> list[str]:
        return [*await said(made, "a"), *await said(made, "cc")]

    async with batched(backend, max_wait=0.05) as made:
        first = asyncio.create_task(two(made))
        await until(lambda: backend.batches == [["a"]])
        second = asyncio.create_task(said(made, "bb"))
        await until(lambda: made.waiting == 1)
        await asyncio.sleep(0.1)  # longer than it would wait for others
        backend.go.set()
        assert [await first, await second] == [["A", "CC"], ["BB"]]
    assert backend.batches == [["a"], ["bb", "cc"]]


async def test_where_batches_are_long_the_first_waits_while_others_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = Shouting(replicas=2)
    monkeypatch.setattr(gathering, "PART", 1e6)  # the first batch was long: so many times `max_wait` it is
    monkeypatch.setattr(gathering, "MOST", 4)
    async with batched(backend, max_wait=0.2) as made:
        await asyncio.wait_for(said(made, "a", "b", "c"), 5)
        asking = []
        for text in ("bb", "cc", "dd"):
            asking.append(asyncio.create_task(said(made, text)))
            await asyncio.sleep(0.13)
        assert await asyncio.gather(*asking) == [["BB"], ["CC"], ["DD"]]
    assert sum(map(len, backend.batches[:2])) == 3
    # Neither had its half of the others before nobody came any more.
    assert sorted(len(batch) for batch in backend.batches[2:]) == [1, 2]


async def test_replicas_that_are_idle_share_what_waits() -> None:
    backend = Shouting(replicas=2)
    backend.go.clear()
    async with batched(backend, max_wait=0.0) as made:
        asking = asyncio.create_task(said(made, "aa", "bb", "cc"))
        await until(lambda: len(backend.batches) == 2)
        assert sorted(backend.batches) == [["aa"], ["bb", "cc"]]
        backend.go.set()
        assert await asking == ["AA", "BB", "CC"]


async def test_out_of_memory_halves_the_batch_finishes_it_and_is_said() -> None:
    backend = Shouting(fits=8)
    async with batched(backend, most=16, max_wait=0.0) as made:
        assert await said(made, *["abcd"] * 4) == ["ABCD"] * 4
        assert [len(batch) for batch in backend.batches] == [4, 2, 2]
        assert made.counts.splits == 1
        # From now on a batch has what fitted.
        backend.batches.clear()
        assert await said(made, *["abcd"] * 4) == ["ABCD"] * 4
        assert [len(batch) for batch in backend.batches] == [2, 2]
        assert await said(made, "abc", "x" * 17) == ["ABC", "OutOfMemory"]


async def test_a_segment_that_the_model_refuses_fails_alone() -> None:
    async with batched(Shouting(), max_wait=0.0) as made:
        answers = await asyncio.gather(said(made, "a", "b!", "c"), said(made, "d"))
    assert [*answers] == [["A", "ValueError", "C"], ["D"]]


async def test_who_leaves_is_left_out() -> None:
    backend = Shouting()
    backend.go.clear()
    async with batched(backend, max_wait=0.0) as made:
        first = asyncio.create_task(said(made, "first"))
        await until(lambda: len(backend.batches) == 1)
        leaving = asyncio.create_task(said(made, "never", "ever"))
        staying = asyncio.create_task(said(made, "stays"))
        await until(lambda: made.waiting == 3)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert made.waiting == 1
        first.cancel()  # it runs: nobody is told
        await asyncio.sleep(0.01)
        assert not first.done()
        backend.go.set()
        assert await staying == ["STAYS"]
        assert first.cancelled()
    assert backend.batches == [["first"], ["stays"]]


async def test_answers_with_alternatives_are_made_apart() -> None:
    backend = Shouting()
    async with batched(backend, max_wait=0.0) as made:
        await asyncio.gather(said(made, "aa"), said(made, "bbb", alternatives=2))
    assert sorted(backend.asked) == [(1, 4, 0), (1, 6, 2)]


async def test_a_model_that_has_failed_is_reported() -> None:
    backend = Shouting()
    failed: list[str] = []
    made = Batching(backend, Measured(None, 9), lambda longest: longest, max_wait=0.0, failed=failed.append)
    backend.broken = "the device is lost"
    for _ in range(2):
        assert await said(made, "a") == ["RuntimeError"]
    backend.broken = ""
    assert await said(made, "a") == ["A"]
    backend.broken = "the device is lost"
    for _ in range(3):
        assert failed == []
        await said(made, "a")
    await until(lambda: failed == ["the device is lost"])
    await made.close()


async def test_a_broken_model_is_reported_at_once_and_not_tried_again() -> None:
    backend = Shouting()
    failed: list[str] = []
    made = Batching(backend, Measured(None, 9), lambda longest: longest, max_wait=0.0, failed=failed.append)
    backend.run = broken  # type: ignore[method-assign]
    assert await said(made, "a", "b", "c") == ["Broken"] * 3
    assert made.counts.batches == 1
    assert failed == ["out of memory: no more"]
    await made.close()


def broken(*args: object, **more: object) -> list[Output]:
    raise Broken("out of memory: no more")


async def test_no_more_wait_than_is_sensible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MOST_WAITING", 2)
    async with batched(Shouting(), max_wait=0.0) as made:
        with pytest.raises(Full):
            await said(made, "a", "b", "c")
        assert await said(made, "a", "b") == ["A", "B"]


@pytest.mark.parametrize("count", [1, 10_000])
async def test_a_closed_one_leaves_nobody_waiting(count: int) -> None:
    """Nor do many that wait hold the end up."""
    backend = Shouting()
    backend.go.clear()
    async with batched(backend, max_wait=0.0) as made:
        running = asyncio.create_task(said(made, "runs"))
        await until(lambda: len(backend.batches) == 1)
        waiting = asyncio.create_task(said(made, *["waits"] * count))
        await until(lambda: made.waiting == count)
        backend.go.set()
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 5
    _, pending = await asyncio.wait([running, waiting], timeout=5)
    assert not pending
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(made.translate([backend.segment("late", "en", "fr")]), 5)
