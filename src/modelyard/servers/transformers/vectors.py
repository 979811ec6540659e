"""Embeddings: a forward of some texts at once, pooled and of length one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Vectors:
    """Of one model, whose texts are padded with any token."""

    def __init__(self, model: Any, tokenizer: Any, pooling: str) -> None:
        self._model = model
        self._pad = tokenizer.pad_token_id or 0
        self._pooling = pooling

    def forward(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """A vector of each list of tokens. Raises what the libraries raise."""
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
