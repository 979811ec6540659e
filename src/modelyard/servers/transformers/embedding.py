"""Embeddings of many requests in the same forwards. Standard library only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from modelyard.servers.gathering import Gathering
from modelyard.servers.transformers.generation import Failed
from modelyard.servers.transformers.parameters import Parameters

Vector: TypeAlias = Sequence[float]
Forward: TypeAlias = Callable[[Sequence[Sequence[int]]], Sequence[Vector]]


class Embedding:
    """See `generation.Embedder`. Nobody waits for others where each slot has a request in it."""

    def __init__(self, forward: Forward, parameters: Parameters) -> None:
        self._forward = forward
        self._batches = 0
        self._gathering: Gathering[Sequence[int], Vector] = Gathering(
            self._computed,
            lambda: parameters.batch,
            max_wait=parameters.max_wait_ms / 1000,
            most=parameters.batch_size or sys.maxsize,
            crowd=parameters.slots,
        )

    def counts(self) -> Mapping[str, float]:
        return {"batch": self._gathering.running, "batches": self._batches}

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Sequence[Vector]:
        vectors = []
        for one in await self._gathering.ask(inputs):
            if isinstance(one, Exception):
                raise Failed(f"{type(one).__name__}: {one}")
            vectors.append(one)
        return vectors

    def _computed(self, inputs: Sequence[Sequence[int]], lane: int) -> Sequence[Vector]:
        self._batches += 1
        return self._forward(inputs)
