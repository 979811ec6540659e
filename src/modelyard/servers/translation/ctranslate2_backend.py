"""CTranslate2 as a back end, for folders that `convert` made, or its own converter with the tokenizer's files
beside what it made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ctranslate2

from modelyard.errors import CannotLoad, ShuttingDown
from modelyard.servers.translation import families
from modelyard.servers.translation.backends import Broken, OutOfMemory, Output, Segment, chosen, shared_cores
from modelyard.servers.translation.tokens import END, Tokenizing

_NO_HOST_MEMORY = "failed to allocate memory"  # as the allocators of CTranslate2 say it

PATIENCE = 2
"""A search ends when so many times its width of hypotheses are whole (Kasai et al. 2022, arXiv:2204.05424).
With 1, poor short ones end it before the best one is whole."""


class CTranslate2Backend(Tokenizing):
    """See Backend. `device` is `cpu`, `cuda`, `cuda:N` or `auto`; `dtype` one of the types that CTranslate2
    computes in there, by default int8 on the CPU and float16 on a GPU. `replicas` compute at once, on the CPU
    with `threads` each (0: see `shared_cores`; one on a GPU). Raises BadFile, and CannotLoad for a device or
    a type that is not there."""

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        dtype: str | None = None,
        *,
        replicas: int = 0,
        threads: int = 0,
    ) -> None:
        if not (folder / families.CONVERTED).is_file():
            raise CannotLoad(
                f"{folder}: has no {families.CONVERTED}; CTranslate2 reads what `python -m "
                "modelyard.servers.translation.convert` makes of it"
            )
        super().__init__(folder)
        self._broken = ""
        self.device = device = chosen(device, ctranslate2.get_cuda_device_count())
        kind, number = _device(device)
        if kind == "cpu":
            replicas, threads = shared_cores(replicas, threads)
        self.replicas = replicas or 1
        self.dtype = _dtype(kind, number, dtype)
        try:
            self._model: ctranslate2.Translator | None = ctranslate2.Translator(
                str(folder), device=kind, device_index=number, compute_type=self.dtype,
                inter_threads=self.replicas, intra_threads=threads,
            )  # fmt: skip
        except (RuntimeError, ValueError, MemoryError) as error:
            raise CannotLoad(f"{folder}: CTranslate2 cannot load it on {device}: {error}") from None

    def run(
        self, batch: Sequence[Segment], *, beam_size: int = 1, max_output: int = 256, alternatives: int = 0
    ) -> list[Output]:
        model = self._model
        if model is None:
            raise ShuttingDown("the translator is closed; make a new one")
        if not batch:
            return []
        if self._broken:
            raise Broken(self._broken)
        prefixes = [list(segment.prefix) for segment in batch]
        marks = max(map(len, prefixes))
        try:
            found = model.translate_batch(
                [list(segment.tokens) for segment in batch],
                target_prefix=prefixes if marks else None,
                beam_size=max(beam_size, alternatives + 1),
                patience=PATIENCE,
                num_hypotheses=alternatives + 1,
                max_input_length=0,
                min_decoding_length=0,
                max_decoding_length=min(max_output + marks, self.longest - 1),
                return_end_token=True,
            )
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or _NO_HOST_MEMORY in str(error):
                # Threads of its own were stopped within a step: later batches may crash, or never end.
                self._broken = f"out of memory: {error}"
                raise Broken(self._broken) from None
            if "out of memory" in str(error).lower():
                raise OutOfMemory(str(error)) from None
            raise
        return [self._output(one.hypotheses, segment) for one, segment in zip(found, batch, strict=True)]

    def close(self) -> None:
        self._model = None

    def _output(self, hypotheses: Sequence[Sequence[str]], segment: Segment) -> Output:
        best, *others = hypotheses
        return Output(
            self._tokenizer.text(best),
            max(0, len(best) - len(segment.prefix)),
            END in best[-1:],
            tuple(self._tokenizer.text(one) for one in others),
        )


def _device(name: str) -> tuple[str, int]:
    """Kind and number of a device. Raises CannotLoad for one that is not there."""
    kind, _, number = name.partition(":")
    there = ["cpu", *(f"cuda:{one}" for one in range(ctranslate2.get_cuda_device_count()))]
    if f"{kind}:{number or 0}" not in (*there, "cpu:0"):
        raise CannotLoad(f"there is no device {name!r} here; CTranslate2 sees {', '.join(there)}")
    return kind, int(number or 0)


def _dtype(kind: str, number: int, wanted: str | None) -> str:
    there = sorted(ctranslate2.get_supported_compute_types(kind, number))
    if wanted is None:
        usual = families.USUAL_TYPES[kind]
        return usual if usual in there else "float32"
    if wanted not in there:
        raise CannotLoad(
            f"there is no type {wanted!r} on this {kind}; CTranslate2 computes in {', '.join(there)}"
        )
    return wanted
