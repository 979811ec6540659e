"""What a start is called and what it remembers: the instance's name, its reason, the wait for room."""

from __future__ import annotations

import pytest

from core.yard import Yard, of, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.types import Cause


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("org/na me", "org-na-me-1"),
        ("v1.5_q4-k", "v1.5_q4-k-1"),
        ("m" * 41, "m" * 40 + "-1"),
    ],
)
def test_an_instance_is_named_by_a_short_plain_form_of_its_model(model: str, name: str) -> None:
    yard = Yard()
    (start,) = of(ac.Start, yard.ask("r", yard.add(model)))
    assert start.instance == name


def test_an_instance_remembers_why_it_was_started() -> None:
    yard = Yard()
    a = yard.add("a")
    (start,) = of(ac.Start, yard.ask("r", a))
    assert start.reason
    assert yard.instance(a).reason == start.reason


def test_a_swap_that_waited_moves_the_usual_wait_for_room_a_fifth_towards_it() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=2.0)
    usual = yard.state.room_seconds
    b = yard.add("b")
    yard.ask("r", b)
    assert stopped(yard.pass_time(10.0)) == ["a"]
    assert started(yard.released(a)) == ["b"]
    assert yard.state.room_seconds == pytest.approx(0.8 * usual + 0.2 * 10.0)


def test_a_start_in_free_memory_shortens_the_usual_wait_for_room() -> None:
    yard = Yard()
    usual = yard.state.room_seconds
    yard.load("a")
    assert yard.state.room_seconds == pytest.approx(0.8 * usual)


@pytest.mark.parametrize("replicas", [1, 2], ids=["leaves-the-line", "wants-another"])
def test_once_it_starts_a_version_is_blocked_by_nobody(replicas: int) -> None:
    yard = Yard()
    a = yard.load("a", min_residency=2.0)
    b = yard.add("b", max_wait=20.0, min_replicas=replicas, max_replicas=replicas)
    yard.ask("r", b)
    yard.pass_time(3.0)
    assert yard.version(b).blocked_by
    yard.released(a)
    assert (yard.version(b).blocked_by, yard.version(b).passed) == ("", 0)
    (refuse,) = of(ac.Refuse, yard.pass_time(20.0))
    assert refuse.message == "b was not ready within 20 s"


def test_a_failed_start_says_how_long_it_took_and_a_crash_later_does_not() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    yard.pass_time(3.0)
    yard.failed(a)
    yard.released(a)
    yard.pass_time(1.0)
    yard.ready(a)
    yard.do(ev.Exited(yard.instance(a).id, 1, Cause.CRASHED))
    failed = [dict(note.fields) for note in of(ac.Note, yard.log) if note.kind == "failed"]
    assert [fields.get("seconds") for fields in failed] == [3.0, None]
