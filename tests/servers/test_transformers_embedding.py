"""Embeddings of many requests in the same forwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from modelyard.servers.transformers.embedding import Embedding
from modelyard.servers.transformers.generation import Failed
from modelyard.servers.transformers.parameters import Parameters
from waiting import until

BAD = 666  # a token that cannot be computed


class Forward:
    """The sum of each input, once it may `go`; `batches` are the lengths that it was given."""

    def __init__(self, *, go: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        if go:
            self.go.set()

    def __call__(self, rows: Sequence[Sequence[int]]) -> Sequence[Sequence[float]]:
        self.batches.append([len(row) for row in rows])
        assert self.go.wait(10)
        if any(BAD in row for row in rows):
            raise RuntimeError("out of range")
        return [[float(sum(row))] for row in rows]


def embedding(
    forward: Forward, *, slots: int = 8, batch: int = 64, batch_size: int = 0, max_wait_ms: int = 0
) -> Embedding:
    told = Parameters(
        "unix:/s", "m", "/", 64, slots, batch=batch, batch_size=batch_size, max_wait_ms=max_wait_ms
    )
    return Embedding(forward, told)


async def embed(embedding: Embedding, *inputs: Sequence[int]) -> list[float]:
    return [one for (one,) in await embedding.embed(inputs)]


async def test_requests_that_come_together_are_computed_together() -> None:
    forward = Forward()
    one = embedding(forward, max_wait_ms=5000, batch_size=3)
    began = asyncio.get_running_loop().time()
    said = await asyncio.gather(*(embed(one, [number]) for number in range(3)))
    assert said == [[0.0], [1.0], [2.0]]
    assert forward.batches == [[1, 1, 1]]
    assert asyncio.get_running_loop().time() - began < 4, "a full batch waits for nobody"
    assert one.counts() == {"batch": 0, "batches": 1}


async def test_the_first_waits_no_longer_than_it_has_to() -> None:
    forward = Forward()
    one = embedding(forward, max_wait_ms=300)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await embed(one, [1], [2]) == [1.0, 2.0]
    assert loop.time() - began >= 0.3
    assert forward.batches == [[1, 1]]


async def test_nobody_waits_where_no_other_can_come() -> None:
    forward = Forward()
    one = embedding(forward, slots=2, max_wait_ms=60_000)
    said = await asyncio.wait_for(asyncio.gather(embed(one, [1]), embed(one, [2])), 10)
    assert [*said] == [[1.0], [2.0]]
    assert forward.batches == [[1, 1]]


async def test_what_waits_while_others_are_computed_goes_together_the_short_ones_first() -> None:
    forward = Forward(go=False)
    one = embedding(forward, batch=8)
    asking = [asyncio.create_task(embed(one, [1] * 9))]
    await until(lambda: forward.batches == [[9]])  # longer than the bound: alone
    asking += [
        asyncio.create_task(embed(one, *([1] * length for length in part))) for part in ((4, 2), (2, 4))
    ]
    await asyncio.sleep(0)
    assert one.counts()["batch"] == 1
    forward.go.set()
    assert await asyncio.gather(*asking) == [[9.0], [4.0, 2.0], [2.0, 4.0]]
    assert forward.batches == [[9], [2, 2], [4, 4]], "with its padding, a third would be 12 tokens"


async def test_no_more_inputs_than_its_size() -> None:
    forward = Forward()
    await embed(embedding(forward, batch_size=2), *[[1]] * 5)
    assert [len(batch) for batch in forward.batches] == [2, 2, 1]


async def test_a_bad_input_fails_alone() -> None:
    forward = Forward()
    one = embedding(forward, max_wait_ms=5000, batch_size=4)
    asking = [embed(one, [number]) for number in (1, BAD, 3)]
    said = await asyncio.gather(*asking, embed(one, [4]), return_exceptions=True)
    assert [said[0], *said[2:]] == [[1.0], [3.0], [4.0]]
    assert isinstance(said[1], Failed)
    assert "RuntimeError: out of range" in str(said[1])
    assert not said[1].fatal
    assert await embed(embedding(forward), [5]) == [5.0]


async def test_who_leaves_is_not_computed_and_delays_nobody() -> None:
    forward = Forward(go=False)
    one = embedding(forward)
    first = asyncio.create_task(embed(one, [1]))
    await until(lambda: forward.batches == [[1]])
    leaving = asyncio.create_task(embed(one, [3, 3, 3]))
    staying = asyncio.create_task(embed(one, [4, 4, 4, 4]))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving], timeout=10)
    assert leaving.cancelled()
    forward.go.set()
    assert [await first, await staying] == [[1.0], [16.0]]
    assert forward.batches == [[1], [4]]


async def test_one_whose_request_is_cancelled_while_it_is_computed_is_waited_for_and_harms_nobody() -> None:
    forward = Forward(go=False)
    one = embedding(forward, max_wait_ms=5000, batch_size=2)
    asking = [asyncio.create_task(embed(one, [number])) for number in (1, 2)]
    await until(lambda: forward.batches == [[1, 1]])
    asking[0].cancel()
    await asyncio.sleep(0.01)
    assert not asking[0].done(), "its model must not be put to sleep meanwhile"
    forward.go.set()
    assert await asking[1] == [2.0]
    await asyncio.wait([asking[0]], timeout=10)
    assert asking[0].cancelled()
