"""The contract of the back ends, with models of random weights. Transformers' is run where PyTorch is, and by
tests/e2e otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.errors import CannotLoad
from modelyard.servers.translation.backends import Backend, Broken, OutOfMemory, shared_cores
from servers.translation import contract
from translation import corpus

TRAINED = Path(__file__).parents[3] / "examples" / "translation" / "models" / "m2m100"

CHECKS = pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
FAMILIES = pytest.mark.parametrize("family", ["m2m100", "nllb", "marian", "group"])


@FAMILIES
@CHECKS
def test_ctranslate2(converted: dict[str, Path], family: str, check: Callable[[Backend], None]) -> None:
    check(contract.opened("ctranslate2", converted[family]))


@FAMILIES
def test_transformers(models: dict[str, Path], family: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed here; tests/e2e runs this where it is")
    assert contract.main("transformers", str(models[family])) == 0


def test_a_batch_for_several_targets_is_that_of_each(converted: dict[str, Path]) -> None:
    backend = contract.opened("ctranslate2", converted["m2m100"])
    targets = ("fr", "de", "es")
    segments = [backend.segment("the red house", "en", target) for target in targets]
    together = [output.text for output in backend.run(segments, max_output=10)]
    assert together == [backend.run([one], max_output=10)[0].text for one in segments]
    assert len(set(together)) > 1, "the target does not matter to it"


def test_a_group_has_the_target_before_the_text(converted: dict[str, Path]) -> None:
    backend = contract.opened("ctranslate2", converted["group"])
    assert backend.pairs == (("en", "es"), ("en", "fr"), ("en", "it"), ("en", "pt"))
    segments = [backend.segment("the red house", *pair) for pair in backend.pairs]
    assert [one.tokens[0] for one in segments] == [">>es<<", ">>fr<<", ">>it<<", ">>pt_BR<<"]
    assert len({one.tokens[1:] for one in segments}) == 1
    outputs = [output.text for output in backend.run(segments, max_output=10)]
    assert len(set(outputs)) > 1, "the target does not matter to it"


@pytest.mark.parametrize("family", ["m2m100", "marian"])
def test_int8_is_what_the_cpu_gets(converted: dict[str, Path], family: str) -> None:
    from modelyard.servers.translation.ctranslate2_backend import CTranslate2Backend

    backend = CTranslate2Backend(converted[family], replicas=2, threads=1)
    assert (backend.dtype, backend.replicas) == ("int8", 2)
    assert backend.run(contract.segments(backend), max_output=4)


@pytest.mark.parametrize(
    ("cores", "replicas", "threads", "shared"),
    [
        *((1, 0, 0, (1, 1)), (2, 0, 0, (2, 1)), (4, 0, 0, (4, 1)), (16, 0, 0, (4, 4))),
        *((16, 1, 0, (1, 16)), (16, 0, 8, (2, 8)), (2, 0, 8, (1, 8)), (2, 3, 3, (3, 3)), (2, 4, 0, (4, 1))),
    ],
)
def test_the_cores_are_shared_by_replicas(
    cores: int, replicas: int, threads: int, shared: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert shared_cores(replicas, threads) == shared


def test_a_wider_search_is_no_worse(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    from modelyard.servers.translation.convert import convert

    convert(TRAINED, tmp_path)
    backend = contract.opened("ctranslate2", tmp_path)
    sentences = corpus.testing(11, 500)
    batch = [backend.segment(sentence["es"], "es", "fr") for sentence in sentences]
    for beam_size in (1, 2, 4):
        said = [output.text for output in backend.run(batch, beam_size=beam_size)]
        right = sum(text == one["fr"] for text, one in zip(said, sentences, strict=True))
        assert right >= 0.98 * len(sentences), (beam_size, right)


def test_a_device_or_type_that_is_not_there(converted: dict[str, Path], models: dict[str, Path]) -> None:
    from modelyard.servers.translation.ctranslate2_backend import CTranslate2Backend

    for device in ("cuda:7", "tpu", "cuda:x", "cpu:1"):
        with pytest.raises(CannotLoad, match=f"there is no device '{device}' here; CTranslate2 sees cpu"):
            CTranslate2Backend(converted["marian"], device)
    with pytest.raises(CannotLoad, match=r"no type 'float4' on this cpu; CTranslate2 computes in .*int8"):
        CTranslate2Backend(converted["marian"], dtype="float4")
    with pytest.raises(CannotLoad, match=r"has no model\.bin"):
        CTranslate2Backend(models["marian"])


def test_memory_that_is_not_there_is_told_apart(converted: dict[str, Path]) -> None:
    class Full:
        """What CTranslate2 does where the device has no memory: it raises what CUDA said."""

        def __init__(self, error: Exception) -> None:
            self.error = error

        def translate_batch(self, *args: object, **more: object) -> None:
            raise self.error

    backend = contract.opened("ctranslate2", converted["marian"])
    batch = contract.segments(backend)
    backend._model = Full(RuntimeError("CUDA failed with error out of memory"))  # type: ignore[attr-defined]
    with pytest.raises(OutOfMemory):
        backend.run(batch)
    backend._model = Full(RuntimeError("an illegal memory access"))  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="illegal"):
        backend.run(batch)
    for error in (RuntimeError("mkl_malloc: failed to allocate memory"), MemoryError("std::bad_alloc")):
        backend = contract.opened("ctranslate2", converted["marian"])
        backend._model = Full(error)  # type: ignore[attr-defined]
        for _ in range(2):
            with pytest.raises(Broken, match=f"out of memory: {error}"):
                backend.run(batch)
            backend._model = object()  # type: ignore[attr-defined] # which it does not ask again
