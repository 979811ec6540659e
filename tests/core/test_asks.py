"""Operators ask for a model to be loaded or unloaded: every ask gets its one exact answer, and a version that
is removed leaves no deadline behind."""

from __future__ import annotations

from core.yard import Yard, of, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.types import Cause, Policy, WhenFull


def load(yard: Yard, key: str, *, evict: bool = True) -> list[ac.Loaded]:
    """The answers that an ask to load `key` gets at once."""
    return of(ac.Loaded, yard.do(ev.LoadAsked(key, evict)))


def fail_to_start(yard: Yard, key: str) -> list[ac.Loaded]:
    """A start of `key` fails and its memory comes back: the answers to whoever asked for it."""
    answers = of(ac.Loaded, yard.failed(key, Cause.CRASHED, "boom"))
    yard.released(key)
    return answers


# -- asks that cannot be met


def test_a_load_of_an_unknown_version_says_that_it_was_removed() -> None:
    yard = Yard()
    assert load(yard, "ghost@0") == [ac.Loaded("ghost@0", None, "model_removed", "ghost@0 was removed")]
    assert yard.scheduler.next_deadline() is None


def test_a_load_that_can_never_fit_says_what_is_needed_and_what_there_is() -> None:
    yard = Yard()
    big = yard.add("big", 101)
    message = "big needs 101 bytes and can never fit: the budget of gpu0 is 100 bytes in all"
    assert load(yard, big) == [ac.Loaded(big, None, "never_fits", message)]
    assert yard.scheduler.next_deadline() is None


def test_a_load_while_shutting_down_is_refused() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.do(ev.ShutdownAsked())
    assert load(yard, a) == [ac.Loaded(a, None, "shutting_down", "the server is shutting down")]


def test_unloading_what_is_starting_answers_who_asked_to_load_it() -> None:
    yard = Yard()
    a = yard.add("a")
    assert load(yard, a) == []
    out = yard.do(ev.UnloadAsked(a))
    assert of(ac.Loaded, out) == [ac.Loaded(a, None, "model_not_running", "a was unloaded")]
    assert stopped(out) == ["a"]
    yard.released(a)
    assert yard.scheduler.next_deadline() is None


def test_unloading_another_instance_leaves_the_ask_waiting() -> None:
    yard = Yard()
    a = yard.add("a")
    assert load(yard, a) == []
    assert of(ac.Loaded, yard.do(ev.UnloadAsked(a, "another"))) == []
    assert of(ac.Loaded, yard.ready(a)) == [ac.Loaded(a, yard.instance(a).id)]


# -- back-off


def test_after_one_failed_start_an_ask_waits_for_the_next_start() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    fail_to_start(yard, a)
    assert load(yard, a) == []
    yard.do(ev.Cancelled("r"))
    out = yard.pass_time(0.5)
    assert started(out) == ["a"]
    assert of(ac.Loaded, out) == []


def test_after_two_failed_starts_an_ask_hears_the_error_until_the_back_off_is_over() -> None:
    yard = Yard()
    a = yard.add("a")
    load(yard, a)
    assert fail_to_start(yard, a) == []
    assert started(yard.pass_time(0.5)) == ["a"]
    error = ac.Loaded(a, None, "load_failed", "a did not start: crashed: boom")
    assert fail_to_start(yard, a) == [error]
    yard.pass_time(0.5)
    assert load(yard, a) == [error]
    yard.now = yard.version(a).backoff_until
    out = yard.do(ev.LoadAsked(a))
    assert of(ac.Loaded, out) == []
    assert started(out) == ["a"]


# -- a second ask


LATE = "a was not ready within 30 s"


def test_the_last_who_asks_is_given_the_whole_of_its_wait() -> None:
    yard = Yard()
    a = yard.add("a", max_wait=30.0)
    load(yard, a)
    yard.pass_time(10.0)
    assert load(yard, a) == []
    assert of(ac.Loaded, yard.pass_time(29.5)) == []
    assert of(ac.Loaded, yard.pass_time(0.5)) == [ac.Loaded(a, None, "broken_promise", LATE)]
    assert yard.scheduler.next_deadline() == 120.0, "the load cap of what is starting, and nothing else"


def test_an_ask_under_a_shorter_wait_takes_nothing_from_the_one_before() -> None:
    yard = Yard()
    a = yard.add("a", max_wait=30.0)
    load(yard, a)
    yard.do(ev.PolicyChanged(a, Policy(max_wait=5.0)))
    assert load(yard, a) == []
    assert of(ac.Loaded, yard.pass_time(29.5)) == []
    assert len(of(ac.Loaded, yard.pass_time(0.5))) == 1


def test_an_ask_that_may_evict_still_does_after_one_that_may_not() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=2.0)
    b = yard.add("b")
    load(yard, b, evict=True)
    assert load(yard, b, evict=False) == []
    assert stopped(yard.pass_time(2.0)) == ["a"]
    assert started(yard.released(a)) == ["b"]
    assert of(ac.Loaded, yard.ready(b)) == [ac.Loaded(b, yard.instance(b).id)]


# -- a removed version leaves no deadline behind


def test_a_version_removed_while_it_backs_off_leaves_no_deadline() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    fail_to_start(yard, a)
    yard.do(ev.Removed(a))
    assert a not in yard.state.versions
    assert yard.scheduler.next_deadline() is None


def test_a_version_removed_before_it_grows_leaves_no_deadline() -> None:
    yard = Yard()
    a = yard.load("a", 40, max_replicas=2, patience=5.0)
    yard.ask("running", a)
    yard.ask("waiting", a)
    yard.do(ev.Removed(a))
    yard.finish("running")
    yard.released(a)
    assert a not in yard.state.versions
    assert yard.scheduler.next_deadline() is None


def test_a_version_removed_before_its_minimum_is_tried_again_leaves_no_deadline() -> None:
    yard = Yard()
    yard.load("resident", pin=True)
    kept = yard.add("kept", min_replicas=1, when_full=WhenFull.FAIL)
    assert yard.scheduler.next_deadline() is not None
    yard.do(ev.Removed(kept))
    assert kept not in yard.state.versions
    assert yard.scheduler.next_deadline() is None
