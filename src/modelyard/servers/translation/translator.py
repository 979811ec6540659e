"""The class Translator: a translation model inside a Python program, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from modelyard.errors import CannotLoad, InvalidRequest, NoMemory, ShuttingDown
from modelyard.servers.translation import families
from modelyard.servers.translation.backends import (
    BATCH_TOKENS,
    BEAM_SIZE,
    Backend,
    Broken,
    OutOfMemory,
    Segment,
)
from modelyard.servers.translation.checks import check_settings, code_among, listed, problem_of, some
from modelyard.servers.translation.texts import longest_output, planned

ENGINES = ("ctranslate2", "transformers")


class Translator:
    """A translation model in memory: M2M100, NLLB or Marian (OPUS-MT).

    `model` is the folder of one: as Hugging Face has it, or as CTranslate2 has it with the tokenizer's files
    beside. `device` is `cpu`, `cuda`, `cuda:N`, or `auto`: the first GPU if there is one; Transformers
    spreads a model over all of them as `cuda:*`. `dtype` is what it computes in, by default what suits the
    device (CTranslate2: int8 on the CPU, float16 on a GPU; Transformers: float32 and float16). A batch has
    at most `batch_tokens` tokens of source text, padding included; the search for the best translation is
    `beam_size` wide. `engine` is `ctranslate2` or `transformers`, by default the one that reads the folder.

    Any thread may call it. CTranslate2 computes several batches at once on the CPU. Loading raises BadFile
    for a folder that is no such model, and CannotLoad for an engine that is not installed, or a device or
    type that is not there.
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "auto",
        dtype: str | None = None,
        batch_tokens: int | None = None,
        *,
        engine: str | None = None,
        beam_size: int = BEAM_SIZE,
    ) -> None:
        check_settings(
            model=model,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            engine=engine,
            beam_size=beam_size,
        )
        folder = Path(model).expanduser()
        families.read(folder)  # says what is wrong with it before anything heavy is imported
        self._backend: Backend | None = _opened(folder, device, dtype, engine)
        self._batch_tokens = batch_tokens or BATCH_TOKENS
        self._beam_size = beam_size
        self.device = self._backend.device
        self._pairs = frozenset(self._backend.pairs)

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of all that it reads or writes, sorted."""
        return tuple(self._open.languages)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Source and target of all that it translates."""
        return tuple(self._open.pairs)

    def translate(self, text: str, source: str, target: str) -> str:
        """The text in another language. Line breaks, and whitespace between sentences, stay as they are; an
        empty text stays empty. Codes like `zh-CN`, `pt_BR` and `eng` are understood. Raises InvalidRequest
        for a language or a pair that the model lacks, and NoMemory where one sentence alone is too much for
        the device, or where CTranslate2 on the CPU found no memory: it has to be opened again then."""
        return self.batch([text], source, target)[0]

    def batch(
        self, texts: Sequence[str], source: str | Sequence[str], target: str | Sequence[str]
    ) -> list[str]:
        """Each text translated, in the order of `texts`; `source` and `target` are one code for all, or one
        of each text. All sentences of all texts go through the model together, sorted by length; a batch
        that runs out of memory is halved. Raises as `translate` does, and translates nothing then."""
        backend = self._open
        if isinstance(texts, str):
            raise InvalidRequest("texts: one text is no list of texts; call translate()", param="texts")
        texts = listed("texts", texts, "a list of texts")
        there = frozenset(backend.languages)
        sources = _codes("source", source, len(texts), there)
        targets = _codes("target", target, len(texts), there)
        plans = []
        for text, one, other in zip(texts, sources, targets, strict=True):
            if one != other and (one, other) not in self._pairs:
                has = some(["-".join(pair) for pair in self._pairs])
                raise InvalidRequest(
                    f"target: {one}-{other} is no pair of this model; it has {has}", param="target"
                )
            if problem := problem_of(text):
                raise InvalidRequest(f"texts: {text!r:.40} {problem}", param="texts")
            plans.append(planned(backend, text, one, other))
        outputs = self._translated(backend, [plan.segments for plan in plans])
        return [plan.joined(found) for plan, found in zip(plans, outputs, strict=True)]

    def close(self) -> None:
        """Give the model's memory back. It translates nothing any more."""
        if self._backend is not None:
            self._backend.close()
        self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _open(self) -> Backend:
        if self._backend is None:
            raise ShuttingDown("this Translator is closed; make a new one")
        return self._backend

    def _translated(self, backend: Backend, texts: Sequence[Sequence[Segment]]) -> list[list[str]]:
        """What becomes of the segments of each text."""
        segments = list(chain.from_iterable(texts))
        found = [""] * len(segments)
        lengths = [len(segment) for segment in segments]
        # Each replica has something to do.
        most = min(self._batch_tokens, -(-sum(lengths) // backend.replicas))
        batches = list(batched(lengths, most))

        def run(batch: Sequence[int]) -> list[str]:
            return run_halving(backend, [segments[number] for number in batch], self._beam_size)

        threads = ThreadPoolExecutor(backend.replicas, thread_name_prefix="translation")
        try:
            for batch, outputs in zip(batches, threads.map(run, batches), strict=True):
                for number, output in zip(batch, outputs, strict=True):
                    found[number] = output
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # after `Broken`, what runs may never end
        rest = iter(found)
        return [[next(rest) for _ in one] for one in texts]


def batched(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """The numbers of what has these lengths, longest first, in batches of at most `most` tokens, padding
    included; one that is longer is a batch of its own."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def run_halving(backend: Backend, batch: Sequence[Segment], beam_size: int) -> list[str]:
    """The translations of a batch, of its halves where the device has no memory for it. Raises NoMemory."""
    most = longest_output(max(map(len, batch)))
    try:
        return [output.text for output in backend.run(batch, beam_size=beam_size, max_output=most)]
    except Broken as error:
        raise NoMemory(
            f"{backend.device} ran {error}, and CTranslate2 does not survive that: close this Translator and "
            "open it again, with more memory free or fewer batch_tokens"
        ) from None
    except OutOfMemory as error:
        if len(batch) == 1:
            raise NoMemory(
                f"{backend.device} has no memory for one segment of {len(batch[0])} tokens ({error}); free "
                "some, or take a smaller model, type or beam_size"
            ) from None
    half = len(batch) // 2
    return run_halving(backend, batch[:half], beam_size) + run_halving(backend, batch[half:], beam_size)


def _opened(folder: Path, device: str, dtype: str | None, engine: str | None) -> Backend:
    if engine is None:
        engine = "ctranslate2" if (folder / families.CONVERTED).is_file() else "transformers"
    if engine not in ENGINES:
        raise InvalidRequest(f"engine: {engine!r} is none of {', '.join(ENGINES)}", param="engine")
    opened: Callable[[Path, str, str | None], Backend]
    try:
        if engine == "ctranslate2":
            from modelyard.servers.translation.ctranslate2_backend import (  # noqa: PLC0415 - absent?
                CTranslate2Backend as opened,
            )
        else:
            from modelyard.servers.translation.transformers_backend import (  # noqa: PLC0415 - absent?
                TransformersBackend as opened,
            )
    except ImportError as error:
        extra = "translation" if engine == "ctranslate2" else "transformers,translation"
        raise CannotLoad(f"{error}; run `pip install 'modelyard[{extra}]'` for this interpreter") from None
    return opened(folder, device, dtype)


def _codes(name: str, given: str | Sequence[str], count: int, there: frozenset[str]) -> list[str]:
    """The model's codes for what was given, one of each text."""
    wanted = "the code of a language, such as en, or a list with one of each text"
    codes = [given] * count if isinstance(given, str) else listed(name, given, wanted)
    if len(codes) != count:
        raise InvalidRequest(
            f"{name}: {len(codes)} codes for {count} texts; give one for all, or one each", param=name
        )
    found: dict[str, str] = {}
    try:
        for code in codes:
            if not isinstance(code, str) or code not in found:
                found[code] = code_among(code, there)
    except ValueError as wrong:
        raise InvalidRequest(f"{name}: {wrong}", param=name) from None
    return [found[code] for code in codes]
