"""The Transformers library as a back end, for folders as Hugging Face has them: nothing is converted, and one
model may lie on several devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging

from modelyard.errors import CannotLoad, ShuttingDown
from modelyard.servers.translation.backends import OutOfMemory, Output, Segment, chosen
from modelyard.servers.translation.tokens import END, PAD, UNKNOWN, Tokenizing

DTYPES = ("float32", "float16", "bfloat16")


class TransformersBackend(Tokenizing):
    """See Backend. `device` is `cpu`, `cuda`, `cuda:N`, `auto`, or `cuda:*` for all GPUs together; `dtype`
    one of DTYPES, by default float32 on the CPU and float16 elsewhere. It computes one batch at a time.
    Raises BadFile, and CannotLoad for a device or a type that is not there, and for weights that do not
    fit."""

    replicas = 1

    def __init__(self, folder: Path, device: str = "cpu", dtype: str | None = None) -> None:
        super().__init__(folder)
        self.device = device = _device(device)
        self.dtype = dtype or ("float32" if device == "cpu" else "float16")
        if self.dtype not in DTYPES:
            raise CannotLoad(
                f"Transformers does not compute in {dtype!r} here; choose of {', '.join(DTYPES)}"
            )
        self._lock = Lock()
        logging.disable_progress_bar()
        place = {"device_map": "auto"} if device == "cuda:*" else {}
        try:
            model: Any = AutoModelForSeq2SeqLM.from_pretrained(
                str(folder),
                dtype=getattr(torch, self.dtype),
                local_files_only=True,
                trust_remote_code=False,
                **place,
            )
            self._model: Any = (model if place else model.to(self.device)).eval()
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            raise CannotLoad(f"{folder}: Transformers cannot load it on {device}: {error}") from None
        size = self._model.config.vocab_size
        read, self._written = self._tokenizer.vocabularies(size, size)
        self._source, self._target = _numbers(read), _numbers(self._written)

    def run(
        self, batch: Sequence[Segment], *, beam_size: int = 1, max_output: int = 256, alternatives: int = 0
    ) -> list[Output]:
        with self._lock:
            if self._model is None:
                raise ShuttingDown("the translator is closed; make a new one")
            if not batch:
                return []
            try:
                found = self._generate(batch, max(beam_size, alternatives + 1), max_output, alternatives + 1)
            except (torch.OutOfMemoryError, MemoryError):
                found = None
            except RuntimeError as error:
                if "can't allocate memory" not in str(error):
                    raise
                found = None
            if found is None:
                if self._model.device.type == "cuda":
                    torch.cuda.empty_cache()
                raise OutOfMemory(self.device)
        return [
            self._output(found[at : at + alternatives + 1]) for at in range(0, len(found), alternatives + 1)
        ]

    def close(self) -> None:
        with self._lock:
            self._model = None

    def _generate(self, batch: Sequence[Segment], beams: int, most: int, best: int) -> list[list[int]]:
        """The tokens after the prefix of the best outputs of each, padded at their ends."""
        longest = max(map(len, batch))
        unknown, padding = self._source[UNKNOWN], self._source[PAD]
        rows = [[self._source.get(token, unknown) for token in segment.tokens] for segment in batch]
        inputs = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        start = self._model.config.decoder_start_token_id
        prefix = torch.tensor([[start, *(self._target[token] for token in one.prefix)] for one in batch])
        room = self.longest - prefix.shape[1]
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=inputs.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                decoder_input_ids=prefix.to(self._model.device),
                num_beams=beams,
                num_return_sequences=best,
                do_sample=False,
                max_new_tokens=min(most, room),
                max_length=None,
                eos_token_id=self._target[END],
                pad_token_id=self._target[PAD],
                forced_bos_token_id=None,
                forced_eos_token_id=None,
            )
        return [list(row) for row in found[:, prefix.shape[1] :].tolist()]

    def _output(self, rows: Sequence[Sequence[int]]) -> Output:
        texts, counts, whole = [], [], []
        for row in rows:
            tokens = [self._written[number] for number in row]
            whole.append(END in tokens)
            tokens = tokens[: tokens.index(END) + 1] if END in tokens else tokens
            texts.append(self._tokenizer.text(tokens))
            counts.append(len(tokens))
        return Output(texts[0], counts[0], whole[0], tuple(texts[1:]))


def _numbers(vocabulary: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(vocabulary)}


def _device(name: str) -> str:
    """The one that is meant. Raises CannotLoad for one that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = chosen(name, count)
    there = ["cpu", *(f"cuda:{number}" for number in range(count))]
    whole = {"cuda": "cuda:0", "cuda:*": "cuda:0"}.get(name, name)
    if whole not in there:
        raise CannotLoad(f"there is no device {name!r} here; PyTorch sees {', '.join(there)}")
    return name
