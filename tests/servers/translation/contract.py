"""What every back end has to do, on any model. Each function takes a loaded back end; none needs pytest, so
that interpreters without it can run them all:

    python -m servers.translation.contract transformers FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelyard.errors import ModelyardError, ShuttingDown
from modelyard.servers.translation.backends import Backend, Segment

TEXTS = ("the red house.", "two dogs", "a small tree is old. the cat likes the red dog!", "not 12", "é🙂ü")


def segments(backend: Backend) -> list[Segment]:
    """Of several pairs, where there are any."""
    several = (("en", "fr"), ("de", "es"), ("fr", "en"), ("en", "es"))
    pairs = [pair for pair in several if pair in backend.pairs]
    return [backend.segment(text, *pairs[number % len(pairs)]) for number, text in enumerate(TEXTS)]


def pairs_are_made_of_its_languages(backend: Backend) -> None:
    assert backend.pairs
    assert {code for pair in backend.pairs for code in pair} == {*backend.languages}
    assert all(one != other for one, other in backend.pairs)
    assert backend.replicas >= 1
    assert backend.longest > 16


def a_segment_is_as_long_as_what_is_computed(backend: Backend) -> None:
    source, target = backend.pairs[0]
    short, long = (backend.segment(text, source, target) for text in ("a", "a red house is old"))
    assert len(short) == len(short.tokens) < len(long)
    assert (short.source, short.target) == (source, target)
    assert short.tokens[-1] == "</s>"


def other_codes_are_refused(backend: Backend) -> None:
    source, target = backend.pairs[0]
    for pair in ((source, "qqq"), ("qqq", target)):
        try:
            backend.segment("a", *pair)
        except KeyError:
            continue
        raise AssertionError(f"it knows {pair}")


def outputs_come_in_order_whatever_else_is_in_the_batch(backend: Backend) -> None:
    batch = segments(backend)
    alone = [backend.run([one], max_output=12)[0] for one in batch]
    assert backend.run(batch, max_output=12) == alone
    assert backend.run(batch[::-1], max_output=12) == alone[::-1]
    assert backend.run([], max_output=12) == []


def a_text_has_none_of_the_marks(backend: Backend) -> None:
    for output in backend.run(segments(backend), max_output=30, alternatives=1):
        for text in (output.text, *output.alternatives):
            assert "</s>" not in text
            assert not text.startswith(("__", "fra_", ">>"))


def outputs_are_cut_at_their_bound_and_say_so(backend: Backend) -> None:
    for most in (1, 5):
        for output in backend.run(segments(backend), max_output=most):
            assert output.tokens <= most
            assert output.whole or output.tokens == most
    # The bound of the model's own is kept without a word.
    assert all(one.tokens < backend.longest for one in backend.run(segments(backend), max_output=10_000))


def alternatives_are_as_many_as_were_asked_for(backend: Backend) -> None:
    for output in backend.run(segments(backend), max_output=8, alternatives=2):
        assert len(output.alternatives) == 2
    for output in backend.run(segments(backend), max_output=8, beam_size=3):
        assert output.alternatives == ()


def several_threads_may_run_it(backend: Backend) -> None:
    batch = segments(backend)
    wanted = backend.run(batch, max_output=8)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: backend.run(batch, max_output=8), range(8)))
    assert found == [wanted] * 8


def once_closed_it_runs_nothing(backend: Backend) -> None:
    batch = segments(backend)
    backend.close()
    backend.close()
    try:
        backend.run(batch)
    except ShuttingDown:
        return
    raise AssertionError("it ran")


CHECKS: tuple[Callable[[Backend], None], ...] = (
    pairs_are_made_of_its_languages,
    a_segment_is_as_long_as_what_is_computed,
    other_codes_are_refused,
    outputs_come_in_order_whatever_else_is_in_the_batch,
    a_text_has_none_of_the_marks,
    outputs_are_cut_at_their_bound_and_say_so,
    alternatives_are_as_many_as_were_asked_for,
    several_threads_may_run_it,
    once_closed_it_runs_nothing,
)


def opened(engine: str, folder: Path) -> Backend:
    """In float32, so that batches do not differ by rounding."""
    if engine == "ctranslate2":
        from modelyard.servers.translation.ctranslate2_backend import CTranslate2Backend

        return CTranslate2Backend(folder, dtype="float32", threads=1)
    from modelyard.servers.translation.transformers_backend import TransformersBackend

    return TransformersBackend(folder, dtype="float32")


def main(engine: str, folder: str) -> int:
    failed = 0
    for check in CHECKS:
        try:
            check(opened(engine, Path(folder)))
        except (AssertionError, ModelyardError, ValueError, RuntimeError, KeyError) as error:
            print(f"{check.__name__}: {type(error).__name__}: {error}")
            failed += 1
    print(f"{len(CHECKS) - failed} of {len(CHECKS)}")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
