"""Embeddings: a forward of some texts at once, pooled and of length one. One forward at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from modelyard.servers.transformers.generation import Failed, Gone
from modelyard.servers.transformers.parameters import Parameters


class Vectors:
    """See `generation.Embedder`."""

    def __init__(self, model: Any, tokenizer: Any, pooling: str, parameters: Parameters) -> None:
        self._model = model
        self._pad = tokenizer.pad_token_id or 0
        self._pooling = pooling
        self._bound = parameters.batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedding")

    async def embed(
        self, inputs: Sequence[Sequence[int]], gone: Callable[[], bool]
    ) -> Sequence[Sequence[float]]:
        loop = asyncio.get_running_loop()
        vectors: dict[int, list[float]] = {}
        for batch in _batches(inputs, self._bound):
            if gone():
                raise Gone
            try:
                rows = await loop.run_in_executor(self._thread, self._forward, [inputs[i] for i in batch])
            except Exception as error:  # whatever the libraries raise belongs to this request
                raise Failed(f"{type(error).__name__}: {error}") from error
            vectors |= zip(batch, rows, strict=True)
        return [vectors[i] for i in range(len(inputs))]

    def _forward(self, rows: list[Sequence[int]]) -> list[list[float]]:
        width = max(map(len, rows))
        device = self._model.device
        tokens = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = (torch.arange(width, device=device)[None] < lengths[:, None]).long()
        with torch.inference_mode():
            states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        if self._pooling == "cls":
            pooled = states[:, 0]
        elif self._pooling == "last":
            pooled = states[torch.arange(len(rows), device=device), lengths - 1]
        else:
            pooled = (states * mask[..., None]).sum(1) / lengths[:, None]
        vectors: list[list[float]] = torch.nn.functional.normalize(pooled, dim=-1).tolist()
        return vectors


def _batches(inputs: Sequence[Sequence[int]], bound: int) -> Iterator[list[int]]:
    """The numbers of the inputs, those of like length together, at most so many tokens with their padding."""
    batch: list[int] = []
    for number in sorted(range(len(inputs)), key=lambda one: len(inputs[one])):
        if batch and len(inputs[number]) * (len(batch) + 1) > bound:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
