"""Speculative generation, which the library has for one request at a time: each slot generates in a thread.

A draft model guesses tokens, or the prompt does (prompt lookup); the model checks all guesses at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from modelyard.servers.transformers.asks import Sampling
from modelyard.servers.transformers.drawing import drawn
from modelyard.servers.transformers.generation import Failed, Job
from modelyard.servers.transformers.parameters import Parameters

_DRAFT_TOKENS = 5


class Speculation:
    """See `generation.Generator`."""

    def __init__(self, model: Any, draft: Any, parameters: Parameters) -> None:
        self._model = model
        self._threads = ThreadPoolExecutor(parameters.slots, thread_name_prefix="slot")
        self._wanted: set[Job] = set()
        self._guesses = (parameters.draft_tokens or _DRAFT_TOKENS) if draft is not None else 0
        self._drafted = self._accepted = 0
        self._more: dict[str, object] = {"prompt_lookup_num_tokens": parameters.ngram or None}
        if draft is not None:
            draft.generation_config.num_assistant_tokens = self._guesses
            draft.generation_config.assistant_confidence_threshold = 0.0
            draft.generation_config.num_assistant_tokens_schedule = "constant"
            self._more = {"assistant_model": draft}

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def start(self, job: Job) -> None:
        loop = asyncio.get_running_loop()

        def end(error: Exception | None) -> None:
            self._wanted.discard(job)
            job.said.put_nowait(error)

        def generate() -> None:
            error: Exception | None = None
            try:
                self._generate(job, loop)
            except Exception as problem:  # whatever the libraries raise belongs to this request
                error = Failed(f"{type(problem).__name__}: {problem}")
            loop.call_soon_threadsafe(end, error)

        self._wanted.add(job)
        self._threads.submit(generate)

    def cancel(self, job: Job) -> None:
        self._wanted.discard(job)

    def counts(self) -> Mapping[str, float]:
        return {"drafted": self._drafted, "accepted": self._accepted} if self._guesses else {}

    def _say(self, job: Job, tokens: list[int]) -> None:
        """Tokens of one step: the guesses that were right, and the one after them."""
        self._drafted += self._guesses
        self._accepted += len(tokens) - 1
        job.said.put_nowait(tokens)

    def _generate(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        prompt = torch.tensor([list(job.prompt)], device=self._model.device)
        self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=job.limit,
                eos_token_id=list(job.ends) or None,
                pad_token_id=next(iter(job.ends), 0),
            ),
            logits_processor=LogitsProcessorList([_Drawing(job.sampling)]),
            stopping_criteria=[_Cancelled(job, self._wanted)],
            streamer=_Stream(lambda tokens: loop.call_soon_threadsafe(self._say, job, tokens)),
            **self._more,
        )


class _Drawing(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._sampling.temperature:
            return scores
        return drawn(scores[0].float(), self._sampling, input_ids.shape[1])[None]


class _Cancelled(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, job: Job, wanted: set[Job]) -> None:
        self._job, self._wanted = job, wanted

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: object) -> torch.Tensor:
        stop = self._job not in self._wanted
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device, dtype=torch.bool)


class _Stream(BaseStreamer):  # type: ignore[misc]
    """Tokens as they come; the prompt comes first, and is no answer."""

    def __init__(self, say: Callable[[list[int]], object]) -> None:
        self._say = say
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:
            self._say(value.flatten().tolist())
        self._prompt = False

    def end(self) -> None:
        pass
