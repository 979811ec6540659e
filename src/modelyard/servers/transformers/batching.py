"""Continuous batching, by the Transformers library's own manager: its thread, its paged cache, its scheduler.

Ours are the sampling, which is each request's own, and the way of tokens to the event loop. The manager runs
without CUDA graphs and without batches prepared ahead: both fix the sampling at their making.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)

from modelyard.servers.transformers.drawing import drawn
from modelyard.servers.transformers.generation import Failed, Job
from modelyard.servers.transformers.parameters import Parameters

PAGE = 256  # tokens
_STOP_WITHIN = 30.0


class Batching:
    """See `generation.Generator`."""

    def __init__(self, model: Any, parameters: Parameters) -> None:
        self._model = model
        self._parameters = parameters
        self._manager: Any = None
        self._names: dict[Job, str] = {}

    def open(self) -> None:
        parameters = self._parameters
        pages = -(-parameters.context // PAGE) * parameters.slots
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=pages + 1,
            max_batch_tokens=max(parameters.batch, parameters.slots),
            max_requests_per_batch=parameters.slots,
            safety_margin=0.0,  # there is room for what each slot may take
            allow_block_sharing=parameters.prefix_caching,
            use_async_batching=False,
            use_cuda_graph=False,
            max_blocks_per_request=0,
            auto_switch_to_flash=False,  # it would fetch a kernel
        )
        self._manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=config,
        )
        self._manager.logit_processor = _Drawing()
        self._manager.start()

    def close(self) -> None:
        self._manager.stop(block=True, timeout=_STOP_WITHIN)
        self._manager = None

    def start(self, job: Job) -> None:
        name = self._names[job] = os.urandom(8).hex()
        told = 0

        def deliver(output: Any) -> None:
            nonlocal told
            if job not in self._names:
                return
            tokens: Sequence[int] = output.generated_tokens
            if output.error is not None:
                self._end(job, Failed(output.error, fatal=not self._manager.is_running()))
                return
            if len(tokens) > told:
                job.said.put_nowait(tokens[told:])
                told = len(tokens)
            if output.is_finished():
                self._end(job, None)

        self._manager.register_result_handler(name, deliver)
        accepted = self._manager.add_request(
            list(job.prompt),
            request_id=name,
            max_new_tokens=job.limit,
            streaming=True,
            eos_token_id=list(job.ends) or -1,
            sampling=job.sampling,
        )
        if accepted is None:
            error = self._manager.background_thread_status.fatal_error
            self._end(job, Failed(f"the generation loop has ended: {error}", fatal=True))

    def cancel(self, job: Job) -> None:
        name = self._names.get(job)
        if name is None:
            return
        # The loop takes a cancelled request out before it computes for one that comes later.
        self._manager.cancel_request(name)
        with self._manager.output_router._lock:
            self._manager.output_router.result_handlers.pop(name, None)
        self._end(job, None)

    def counts(self) -> Mapping[str, float]:
        processor = self._manager.batch_processor
        return {"kv_use": round(1 - processor.cache.compute_free_capacity(), 4)} if processor else {}

    def _end(self, job: Job, how: Failed | None) -> None:
        del self._names[job]
        job.said.put_nowait(how)


class _Drawing(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]
    """Draws for each request as it asked: the manager then takes the greatest."""

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._rows: list[Any] = []

    def check_kwargs(self, kwargs: Mapping[str, object]) -> None:
        pass

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Any) -> Any:
        self._rows = [request.state for request in requests_in_batch if request.has_new_token]
        return arg_storage

    def __call__(self, input_ids: Any, scores: torch.Tensor, logits_processor_args: Any) -> torch.Tensor:
        for number, state in enumerate(self._rows):
            sampling = state.logit_processor_kwargs["sampling"]
            if sampling.temperature:
                scores[number] = drawn(scores[number], sampling, state.position_offset)
        return scores
