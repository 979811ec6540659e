"""How a token is drawn: from the scores, what the request asked for, and where it stands, by nothing else.

So an answer does not depend on what is computed beside it, and a draft model that draws alike is right often.
"""

from __future__ import annotations

import torch

from modelyard.servers.transformers.asks import Sampling

_SPREAD = 0x9E3779B97F4A7C15


def drawn(scores: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """Scores (one row, float32) whose greatest is the token that is drawn for this position."""
    if sampling.temperature == 0:
        return scores
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < torch.topk(scores, sampling.top_k).values[-1], -torch.inf)
    chances = torch.softmax(scores, dim=-1)
    if sampling.top_p < 1:
        ordered, order = torch.sort(chances, descending=True)
        before = ordered.cumsum(-1) - ordered
        chances[order[before > sampling.top_p]] = 0  # the likeliest always stays
    # The first of exponential clocks that run at these rates: each rings first with its chance.
    dice = torch.Generator(device="cpu").manual_seed((sampling.seed * _SPREAD + position) % (1 << 63))
    clocks = torch.empty(len(chances), dtype=torch.float32).exponential_(generator=dice)
    return chances / clocks.to(chances.device)
