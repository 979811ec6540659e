"""For how long a server that says 429 is left alone."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from modelyard.core.types import OutcomeKind
from modelyard.gateway.engine_errors import LONGEST_PAUSE, pause
from modelyard.gateway.relay import Result


def asked(said: str | None, status: int = 429) -> float:
    headers = [] if said is None else [(b"retry-after", said.encode())]
    return pause(Result(OutcomeKind.DONE, status=status, headers=headers))


def test_it_is_left_alone_for_the_seconds_that_it_says() -> None:
    assert asked("7") == 7.0
    assert asked("9" * 400) == asked("99999") == LONGEST_PAUSE
    assert asked("7", status=503) == 0.0


def test_a_date_is_taken_for_the_time_until_then() -> None:
    assert asked(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60.0, abs=2.0)
    assert asked("Wed, 21 Oct 2099 07:28:00 GMT") == LONGEST_PAUSE
    assert asked("Wed, 21 Oct 2015 07:28:00 GMT") == 1.0


@pytest.mark.parametrize(
    "said", [None, "", "0", "-5", "0.5", "1e400", "nan", "soon", "21 Oct 9999999999 07:28:00 GMT"]
)
def test_what_is_neither_is_a_second(said: str | None) -> None:
    assert asked(said) == 1.0
