"""Sleep tiers: who sleeps instead of stopping, what is booked then, who wakes, and what when that fails."""

from __future__ import annotations

import pytest

from core.yard import Yard, gpu, granted, need, of, ram, refused, rung, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core import sleep
from modelyard.core.admission import wake_seconds
from modelyard.core.types import Cause, Need, OutcomeKind, Rung, Share


def house(room: int = 200, *devices: str) -> Yard:
    return Yard(ram(room), *map(gpu, devices or ("gpu0",)))


def sleeps(size: int = 60, **options: object) -> Need:
    return need(size, rungs=[rung(ram=size, **options)])  # type: ignore[arg-type]


@pytest.fixture
def yard() -> Yard:
    """`a` is ready on gpu0 and idle; both it and `b` take more than half of it, and can sleep."""
    yard = house()
    yard.a, yard.b = yard.load("a", sleeps()), yard.add("b", sleeps())  # type: ignore[attr-defined]
    return yard


A, B = "a@000000000000", "b@000000000000"


def swap(yard: Yard, key: str, other: str) -> None:
    """`key` is asked for once, and `other` sleeps for it."""
    yard.ask(f"r{yard.now}", key)
    yard.slept(other)
    yard.ready(key)
    yard.finish(f"r{yard.now}")
    yard.now += 1.0


def reserved(yard: Yard) -> dict[str, int]:
    return {name: account.reserved for name, account in yard.state.ledger.devices.items()}


class TestASwap:
    def test_the_victim_sleeps_and_keeps_its_bytes_in_host_memory(self, yard: Yard) -> None:
        actions = yard.ask("r", B)
        (order,) = of(ac.Sleep, actions)
        assert (order.rung.name, stopped(actions)) == ("level 1", [])
        assert reserved(yard) == {"ram": 60, "gpu0": 60}  # booked before it sleeps, kept until it does
        assert started(yard.slept(A)) == ["b"]
        assert reserved(yard) == {"ram": 60, "gpu0": 60}
        yard.ready(B)
        assert yard.states(A) == ["asleep"]
        assert yard.holder("r") == "b-2"

    def test_it_wakes_for_the_next_request_where_it_was(self, yard: Yard) -> None:
        swap(yard, B, A)
        yard.ask("r", A)
        (order,) = of(ac.Wake, yard.slept(B))
        assert (order.instance, order.placement[0].device, order.deadline) == ("a-1", "gpu0", yard.now + 120)
        assert reserved(yard) == {"ram": 120, "gpu0": 60}
        assert granted(yard.ready(A)) == ["r"]
        assert reserved(yard) == {"ram": 60, "gpu0": 60}
        assert yard.version(A).load_seconds == 0.0, "a wake was learned as a load"

    def test_what_it_was_seen_to_use_before_is_back(self, yard: Yard) -> None:
        yard.do(ev.Observed("a-1", {"gpu0": 60}))
        yard.ask("r", B)
        assert started(yard.slept(A)) == ["b"]

    def test_a_busy_victim_sleeps_when_its_answers_have_ended(self, yard: Yard) -> None:
        yard.ask("busy", A)
        yard.ask("r", B)
        yard.pass_time(8.0)
        assert yard.states(A) == ["draining"]
        assert of(ac.Sleep, yard.finish("busy"))

    def test_at_the_drain_cap_it_stops(self) -> None:
        yard = house()
        yard.load("a", sleeps(), drain_cap=1.0)
        yard.add("b")
        yard.ask("busy", A)
        yard.ask("r", B)
        assert stopped(yard.pass_time(9.0)) == ["a"]

    def test_without_room_in_host_memory_it_stops(self) -> None:
        yard = house(50)
        yard.load("a", sleeps())
        yard.add("b")
        assert stopped(yard.ask("r", B)) == ["a"]

    def test_room_that_was_taken_while_it_drained(self, yard: Yard) -> None:
        yard.ask("busy", A)
        yard.ask("r", B)
        yard.pass_time(8.0)
        yard.seen("ram", free=10, total=200)
        assert stopped(yard.finish("busy")) == ["a"]

    def test_host_memory_that_is_fenced_takes_nobody(self, yard: Yard) -> None:
        yard.do(ev.FenceAsked("ram", "in repair"))
        assert stopped(yard.ask("r", B)) == ["a"]

    def test_nor_who_drained_while_it_was_fenced(self, yard: Yard) -> None:
        yard.ask("busy", A)
        yard.ask("r", B)
        yard.pass_time(8.0)
        assert yard.states(A) == ["draining"]
        yard.do(ev.FenceAsked("ram", "in repair"))
        assert stopped(yard.finish("busy")) == ["a"]

    def test_the_policy_says_no(self) -> None:
        yard = house()
        yard.load("a", sleeps(), sleep=False)
        yard.add("b")
        assert stopped(yard.ask("r", B)) == ["a"]

    def test_nobody_starts_in_the_host_memory_that_it_goes_to(self) -> None:
        yard = house()
        yard.load("a", sleeps())
        yard.load("cpu", Need((Share("ram", 130),)))
        learns = yard.add("learns", Need((Share("ram", 5),), known=False))
        yard.ask("l", learns)
        both = yard.add("both", Need((Share("accelerator", 60), Share("ram", 100))))
        small = yard.add("small", Need((Share("ram", 30),)))
        yard.ask("r", both)  # both wait until host memory is learned
        yard.ask("s", small)
        actions = yard.ready(learns, ram=5)
        assert of(ac.Sleep, actions)
        assert (stopped(actions), started(actions)) == (["cpu"], [])
        assert reserved(yard)["ram"] == 195
        yard.slept(A)
        assert started(yard.released("cpu@000000000000")) == ["both", "small"]

    def test_what_stays_on_the_device_may_be_too_much_for_this_swap(self) -> None:
        yard = house()
        yard.load("a", sleeps(left=10))
        yard.add("b", 95)
        yard.add("c", 90)
        assert stopped(yard.ask("r", B)) == ["a"]
        yard = house()
        yard.load("a", sleeps(left=10))
        yard.add("c", 90)
        assert of(ac.Sleep, yard.ask("r", "c@000000000000"))

    def test_a_rung_is_offered_only_where_it_frees_most(self) -> None:
        yard = house()
        yard.load("a", sleeps(left=13))  # of 60: more than a fifth
        yard.add("b", 50)
        assert stopped(yard.ask("r", B)) == ["a"]

    def test_the_rung_that_is_back_soonest_of_those_that_free_enough(self) -> None:
        def offered(size: int, *rungs: Rung) -> str:
            yard = house(70)
            yard.version(yard.load("a", need(60, rungs=rungs))).load_seconds = 30.0
            yard.add("b", size)
            orders = of(ac.Sleep, yard.ask("r", B))
            return orders[0].rung.name if orders else "stops"

        slow, fast = rung("slow", ram=5, seconds=0.9), rung("fast", ram=60, left=10, seconds=0.1)
        assert offered(60, slow, fast) == "fast"
        assert offered(95, slow, fast) == "slow"
        assert offered(60, rung("large", ram=80, seconds=0.1), slow) == "slow"
        assert offered(60, rung("unseen"), slow) == "slow"

    def test_none_that_takes_as_long_as_a_load(self) -> None:
        yard = house()
        key = yard.add("a", sleeps(seconds=2.0))
        yard.do(ev.LoadAsked(key))
        yard.now = 2.0
        yard.ready(key)
        yard.add("b")
        assert stopped(yard.ask("r", B)) == ["a"]


class TestWhoSleepsIsAVictimToo:
    def test_of_a_need_of_host_memory(self, yard: Yard) -> None:
        swap(yard, B, A)
        cpu = yard.add("cpu", Need((Share("ram", 150),)))
        assert stopped(yard.ask("r", cpu)) == ["a"]
        assert started(yard.released(A)) == ["cpu"]

    def test_the_cheapest_first(self) -> None:
        yard = house()
        keys = [yard.add(model, sleeps()) for model in "abc"]
        for number, key in enumerate(keys):
            yard.do(ev.LoadAsked(key))
            if number:
                yard.slept(keys[number - 1])
            yard.ready(key)
        for key in keys:
            yard.version(key).load_seconds = 30.0
        yard.version(keys[0]).touch(yard.now)
        cpu = yard.add("cpu", Need((Share("ram", 130),)))
        assert stopped(yard.ask("r", cpu)) == ["b"]

    def test_not_for_a_swap_behind_the_request_that_wakes_it(self, yard: Yard) -> None:
        swap(yard, B, A)
        yard.ask("busy", B)
        yard.ask("r", A)  # waits for the memory of b, and wakes then
        cpu = yard.add("cpu", Need((Share("ram", 100),)))
        assert stopped(yard.ask("c", cpu)) == []
        yard.pass_time(8.0)
        yard.finish("busy")
        assert of(ac.Wake, [*yard.slept(B)])

    def test_who_came_later_does_not_wake_what_an_earlier_one_owns(self) -> None:
        yard = house()
        yard.load("a", sleeps())
        yard.add("b", sleeps())
        swap(yard, B, A)
        yard.do(ev.UnloadAsked(B))
        yard.released(B)
        z = yard.load("z", Need((Share("ram", 130),)))
        yard.ask("busy", z)
        cpu = yard.add("cpu", Need((Share("ram", 180),)))
        yard.ask("c", cpu)
        yard.pass_time(1.0)
        actions = yard.ask("later", A)
        assert not of(ac.Wake, actions)
        assert started(actions) == ["a"]
        assert stopped(actions) == ["a"]

    def test_it_is_not_woken_in_the_moment_in_which_it_stops_for_another(self) -> None:
        yard = house(100)
        yard.load("a", sleeps())
        yard.add("b", sleeps())
        swap(yard, B, A)
        yard.do(ev.UnloadAsked(B))
        yard.released(B)
        learns = yard.add("learns", Need((Share("accelerator", 10), Share("ram", 5)), known=False))
        yard.ask("l", learns)
        cpu = yard.add("cpu", Need((Share("ram", 60),)))
        yard.ask("c", cpu)  # both wait until the devices are learned
        yard.now += 1.0
        yard.ask("r", A)
        actions = yard.ready(learns, gpu0=10, ram=5)
        assert (granted(actions), stopped(actions), started(actions)) == (["l"], ["a"], ["a"])
        assert started(yard.released(A)) == ["cpu"]

    def test_its_second_keep_alive_ends(self) -> None:
        yard = house()
        yard.load("a", sleeps(), keep_alive=5.0, sleep_keep_alive=20.0)
        assert of(ac.Sleep, yard.pass_time(5.0))
        yard.slept(A)
        assert not stopped(yard.pass_time(19.0))
        assert stopped(yard.pass_time(1.0)) == ["a"]

    def test_unload_and_shutdown_end_it(self, yard: Yard) -> None:
        swap(yard, B, A)
        assert stopped(yard.do(ev.UnloadAsked(A))) == ["a"]
        yard.released(A)
        assert reserved(yard) == {"ram": 0, "gpu0": 60}
        yard.ask("r", A)
        assert stopped(yard.do(ev.ShutdownAsked())) == ["b"], "it is falling asleep"


class TestWhereItWakes:
    def test_a_new_one_starts_elsewhere_when_there_is_room(self) -> None:
        yard = house(200, "gpu0", "gpu1")
        yard.load("a", sleeps(), keep_alive=5.0)
        yard.pass_time(5.0)
        yard.slept(A)
        yard.load("b", 60, devices=("gpu0",), pin=True)
        actions = yard.ask("r", A)
        assert (started(actions), stopped(actions)) == (["a"], ["a"]), "the one that sleeps is of no use now"
        assert of(ac.Start, actions)[0].placement[0].device == "gpu1"

    def test_an_idle_victim_elsewhere_is_better_than_a_busy_one_there(self) -> None:
        yard = house(200, "gpu0", "gpu1")
        yard.load("a", sleeps(), keep_alive=5.0)
        yard.pass_time(5.0)
        yard.slept(A)
        b = yard.load("b", 60, devices=("gpu0",))
        yard.load("c", 60, devices=("gpu1",))
        yard.ask("busy", b)
        assert stopped(yard.ask("r", A)) == ["c"]

    def test_not_the_one_that_failed_the_request(self, yard: Yard) -> None:
        swap(yard, B, A)
        yard.do(ev.UnloadAsked(B))
        yard.released(B)
        actions = yard.ask("r", A, exclude=["a-1"], since=0.0)
        assert started(actions) == ["a"]
        assert not of(ac.Wake, actions)

    def test_a_retry_that_it_failed_is_not_left_waiting_beside_it(self, yard: Yard) -> None:
        swap(yard, B, A)
        yard.do(ev.UnloadAsked(B))
        yard.ask("r", A)
        yard.ask("retry", A, exclude=["a-1"], since=yard.now)
        assert "retry" in yard.state.waiting
        yard.released(B)
        actions = yard.ready(A)
        assert granted(actions) == ["r"]
        assert "retry" not in yard.state.waiting

    def test_a_larger_need_that_is_learned_meanwhile_is_for_the_next(self, yard: Yard) -> None:
        swap(yard, B, A)
        yard.do(ev.UnloadAsked(B))
        yard.released(B)
        yard.load("c", 40)
        yard.ask("r", A)
        yard.do(ev.Learned(A, sleeps(70), 3.0))
        assert granted(yard.ready(A)) == ["r"]
        assert reserved(yard) == {"ram": 0, "gpu0": 100}


class TestFailures:
    def test_sleep_refused(self, yard: Yard) -> None:
        yard.ask("r", B)
        assert stopped(yard.failed(A, detail="answered with 500")) == ["a"]
        assert started(yard.released(A)) == ["b"]
        yard.ready(B)

    def test_its_like_stops_for_a_while_then(self, yard: Yard) -> None:
        yard.ask("r", B)
        yard.failed(A)
        yard.released(A)
        yard.ready(B)
        yard.finish("r")
        yard.ask("r2", A)
        yard.slept(B)
        yard.ready(A)
        yard.finish("r2")
        assert stopped(yard.ask("r3", B)) == ["a"]

    def test_sleep_hangs(self, yard: Yard) -> None:
        yard.ask("r", B)
        assert stopped(yard.pass_time(10.0)) == ["a"]
        yard.do(ev.Slept("a-1", 2))  # too late: it stops
        assert yard.states(A) == ["stopping"]

    @pytest.mark.parametrize("known", [False, True])
    def test_one_that_woke_has_its_memory_back_by_and_by(self, yard: Yard, known: bool) -> None:
        """Measured before it sleeps is little then; what was measured once says what it holds."""
        swap(yard, B, A)
        yard.do(ev.Learned(A, sleeps(known=known), 3.0))
        yard.ask("r", A)
        yard.slept(B)
        yard.ready(A)
        yard.finish("r")
        (order,) = of(ac.Sleep, yard.ask("r2", B))
        before = sleep.before(yard.instance(A), order.rung, {"gpu0": 5, "ram": 1})
        assert before == {"gpu0": 60 if known else 5, "ram": 1}
        assert stopped(yard.slept(A, before, {"gpu0": 5, "ram": 60})) == ([] if known else ["a"])

    def test_it_kept_too_much(self, yard: Yard) -> None:
        yard.ask("r", B)
        actions = yard.slept(A, {"gpu0": 60, "ram": 1}, {"gpu0": 13, "ram": 60})
        assert stopped(actions) == ["a"]
        assert "it kept 13 bytes of 60 bytes on gpu0" in of(ac.Stop, actions)[0].reason

    def test_what_was_measured_is_booked(self, yard: Yard) -> None:
        yard.ask("r", B)
        yard.slept(A, {"gpu0": 60, "ram": 1}, {"gpu0": 5, "ram": 40})
        assert reserved(yard) == {"ram": 40, "gpu0": 65}

    def test_what_was_not_measured_is_booked_as_the_engine_says(self, yard: Yard) -> None:
        yard.ask("r", B)
        yard.slept(A, {"gpu0": 60}, {"gpu0": 5})
        assert reserved(yard) == {"ram": 60, "gpu0": 65}

    @pytest.mark.parametrize("told", [True, False])
    def test_wake_fails_and_a_new_one_starts(self, yard: Yard, told: bool) -> None:
        swap(yard, B, A)
        yard.ask("r", A)
        yard.slept(B)
        actions = yard.failed(A) if told else yard.pass_time(120.0)
        assert of(ac.Release, actions)
        assert started(yard.released(A)) == ["a"]
        assert granted(yard.ready(A)) == ["r"]

    def test_the_device_that_it_would_wake_on_is_lost(self) -> None:
        nothing_there = Rung("file", (Share("ram", 5),))
        yard = house()
        yard.load("a", need(60, rungs=[nothing_there]), keep_alive=5.0)
        yard.pass_time(5.0)
        yard.slept(A)
        yard.do(ev.DeviceLost("gpu0", "XID 79"))
        assert yard.states(A) == ["releasing"]

    def test_it_is_killed_while_it_sleeps(self, yard: Yard) -> None:
        swap(yard, B, A)
        instance = yard.instance(A)
        yard.do(ev.Exited(instance.id, instance.generation, Cause.KILLED))
        yard.released(A)
        assert reserved(yard)["ram"] == 0
        yard.ask("r", A)
        yard.slept(B)
        assert yard.states(A) == ["starting"]

    def test_wake_answers_and_then_requests_fail(self, yard: Yard) -> None:
        swap(yard, B, A)
        yard.ask("r", A)
        yard.slept(B)
        yard.ready(A)
        yard.finish("r", OutcomeKind.HUNG)
        actions = yard.released(A)
        assert not of(ac.Wake, actions)
        assert started(yard.ask("again", A)) == ["a"]
        yard.ready(A)
        yard.finish("again")
        assert stopped(yard.ask("r2", B)) == ["a"], "it sleeps no more for a while"

    def test_an_answer_of_an_older_order_is_stale(self, yard: Yard) -> None:
        swap(yard, B, A)
        yard.do(ev.Failed("a-1", 1, Cause.CRASHED))
        yard.do(ev.Exited("a-1", 1, Cause.CRASHED))
        assert yard.states(A) == ["asleep"]


class TestAFirstSleepThatTakesLong:
    """Longer than the release cap of 10 s."""

    @pytest.fixture
    def yard(self) -> Yard:
        yard = house()
        yard.load("a", sleeps(first=60.0), keep_alive=5.0)
        yard.add("b", 60)
        return yard

    def test_whoever_waits_has_its_memory_sooner_when_it_stops(self, yard: Yard) -> None:
        assert stopped(yard.ask("r", B)) == ["a"]

    def test_an_idle_one_has_its_time(self, yard: Yard) -> None:
        (order,) = of(ac.Sleep, yard.pass_time(5.0))
        assert order.deadline == yard.now + 60.0
        for _ in range(5):
            assert not stopped(yard.pass_time(10.0))
        yard.slept(A)
        assert yard.states(A) == ["asleep"]

    def test_an_idle_one_that_is_not_asleep_by_then_stops(self, yard: Yard) -> None:
        yard.pass_time(5.0)
        assert not stopped(yard.pass_time(59.9))
        assert stopped(yard.pass_time(0.2)) == ["a"]
        assert yard.version(A).sleep_after > yard.now

    def test_somebody_waits_for_it_no_longer_than_the_release_cap(self, yard: Yard) -> None:
        yard.pass_time(5.0)
        assert not stopped(yard.pass_time(15.0))
        assert not stopped(yard.ask("r", B))
        assert stopped(yard.pass_time(10.0)) == ["a"]
        assert yard.version(A).sleep_after <= yard.now, "it did nothing wrong"
        assert started(yard.released(A)) == ["b"]

    def test_the_next_sleep_is_as_any(self, yard: Yard) -> None:
        yard.pass_time(5.0)
        yard.slept(A)
        yard.ask("r", A)
        yard.ready(A)
        yard.finish("r")
        (order,) = of(ac.Sleep, yard.ask("r2", B))
        assert order.deadline == yard.now + 10.0
        assert stopped(yard.pass_time(10.0)) == ["a"]


def test_the_expected_wait_is_that_of_a_wake() -> None:
    yard = house()
    yard.load("a", sleeps(seconds=0.25))
    yard.version(A).load_seconds = 30.0
    yard.add("b", 60)
    swap(yard, B, A)
    assert wake_seconds(yard.version(A)) == 0.25
    yard.ask("r", A)
    assert yard.state.waiting["r"].estimate < 1.0


def test_nobody_is_refused_for_a_load_where_it_will_be_woken() -> None:
    """A load takes longer than they would wait, a wake does not: on its way to sleep, asleep, and on its way
    back."""
    yard = house()
    yard.load("a", sleeps(seconds=5.0))
    yard.add("b")
    yard.do(ev.Learned(A, sleeps(seconds=5.0), 400.0))
    yard.ask("r", B)
    assert not refused(yard.ask("sleeping", A))
    assert not refused(yard.do(ev.Cancelled("sleeping")))
    yard.slept(A)
    yard.ready(B)
    yard.finish("r")
    assert not refused(yard.ask("asleep", A))
    yard.released(B)
    assert yard.states(A) == ["waking"]
    assert not refused(yard.ask("waking", A))
    assert max(waiting.estimate for waiting in yard.state.waiting.values()) < 10.0


def test_one_that_stops_after_all_is_not_waited_for_as_if_it_woke(yard: Yard) -> None:
    yard.do(ev.Learned(A, sleeps(seconds=5.0), 400.0))
    yard.ask("r", B)
    yard.ask("r2", A)
    assert sum(ahead.estimate for ahead in yard.version(A).contribution) < 30.0
    yard.failed(A)
    assert yard.version(A).contribution[0].estimate > 400.0
