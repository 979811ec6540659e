"""A scheduler with a clock and short words, for tests: every step ends with the invariants checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, TypeVar

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.invariants import check
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import Instance, Version
from modelyard.core.types import (
    Cause,
    Device,
    DeviceKind,
    Need,
    OutcomeKind,
    Policy,
    Priority,
    Rung,
    Share,
    Spec,
)

A = TypeVar("A", bound=ac.Action)

DIGEST = "0" * 12
NOTHING: Mapping[str, int] = {}


def gpu(name: str = "gpu0", size: int = 100) -> Device:
    return Device(name, DeviceKind.DECLARED, total=size, budget=size)


def ram(size: int = 100) -> Device:
    return Device("ram", DeviceKind.RAM, total=size, budget=size)


def spec(model: str, slots: int = 1, devices: tuple[str, ...] = ()) -> Spec:
    return Spec(model, DIGEST, "fake", slots=slots, devices=devices)


def need(*sizes: int, known: bool = True, on: str = "accelerator", rungs: Iterable[Rung] = ()) -> Need:
    return Need(tuple(Share(on, size) for size in sizes), known, tuple(rungs))


def rung(
    name: str = "level 1",
    ram: int = 60,
    left: int = 0,
    *,
    known: bool = False,
    seconds: float | None = None,
    first: float = 0.0,
) -> Rung:
    """One that takes `ram` bytes to host memory and leaves as many as `left` on the accelerator."""
    return Rung(name, (Share("accelerator", left), Share("ram", ram)), known, seconds, first)


def every_event(
    model: Spec, instance: str, generation: int, request: str = "r"
) -> dict[type[ev.Event], ev.Event]:
    """One event of each kind, about this version, this instance and this request."""
    version, new = model.version, Spec("new", DIGEST, "fake")
    policy = Policy(keep_alive=0.0)
    parts = (ev.Added(new, Policy(), need(60)), ev.PolicyChanged(version, Policy(pin=True)))
    events: list[ev.Event] = [
        ev.Arrived("new", version),
        ev.Cancelled(request),
        ev.Finished(request, instance, generation, OutcomeKind.DONE),
        ev.Warming(instance, generation),
        ev.Ready(instance, generation),
        ev.Failed(instance, generation, Cause.CRASHED),
        ev.Slept(instance, generation),
        ev.Exited(instance, generation, Cause.CRASHED),
        ev.Released(instance, generation),
        ev.Doubted(instance, generation),
        ev.Probed(instance, generation, alive=False),
        ev.Observed(instance, {"gpu0": 70}),
        ev.Cached(version, need(50)),
        ev.FetchFailed(version, "download_failed", "as told"),
        ev.FilesLost(version, "checksum_mismatch", "as told"),
        ev.Learned(version, need(50), 2.0),
        ev.DeviceSeen("gpu0", 100, 10),
        ev.DeviceLost("gpu0", "as told"),
        ev.DeviceAdded(gpu()),
        ev.FenceAsked("gpu0", "as told"),
        ev.Added(model, Policy(), need(60)),
        ev.PolicyChanged(version, policy),
        ev.KeepAliveAsked(version, 0.0),
        ev.Removed(version),
        ev.QueueBounded(1),
        ev.Changed(parts),
        ev.LoadAsked(version),
        ev.UnloadAsked(version),
        ev.ShutdownAsked(),
        ev.Tick(),
    ]
    return {type(event): event for event in events}


# What the scheduler brings a version into: the states of its files, and of its instance.
STATES = (
    "absent",
    "fetching",
    "starting",
    "warming",
    "ready",
    "suspect",
    "draining",
    "stopping",
    "releasing",
    "sleeping",
    "asleep",
    "waking",
)


def state_of(instance: Instance) -> str:
    """Its state; one that is doubted has one of its own."""
    return "suspect" if instance.suspect and instance.state.value == "ready" else instance.state.value


def of(kind: type[A], actions: Iterable[ac.Action]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


class Yard:
    """`do` posts an event now; `pass_time` lets the clock run and ticks on every deadline."""

    def __init__(self, *devices: Device, queue_bound: int = 1024) -> None:
        self.scheduler = Scheduler(queue_bound)
        self.state = self.scheduler.state
        self.now = 0.0
        self.log: list[ac.Action] = []
        for device in devices or (gpu(),):
            self.do(ev.DeviceAdded(device))

    def do(self, event: ev.Event) -> list[ac.Action]:
        out = self.scheduler.handle(event, self.now)
        check(self.scheduler)
        self.log.extend(out)
        return out

    def pass_time(self, seconds: float) -> list[ac.Action]:
        end, out = self.now + seconds, []
        while (due := self.scheduler.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            out.extend(self.do(ev.Tick()))
        self.now = end
        return out

    # -- versions and instances

    def add(
        self,
        model: str,
        size: int | Need = 60,
        *,
        slots: int = 1,
        cached: bool = True,
        devices: tuple[str, ...] = (),
        **policy: Any,
    ) -> str:
        wanted = size if isinstance(size, Need) else need(size)
        added = spec(model, slots, devices)
        self.do(ev.Added(added, Policy(**policy), wanted if cached else None))
        return added.version

    def version(self, key: str) -> Version:
        return self.state.versions[key]

    def instances(self, key: str) -> list[Instance]:
        return list(self.version(key).instances.values()) if key in self.state.versions else []

    def instance(self, key: str) -> Instance:
        (only,) = self.instances(key)
        return only

    def states(self, key: str) -> list[str]:
        return [instance.state.value for instance in self.instances(key)]

    def ready(self, key: str, **observed: int) -> list[ac.Action]:
        """The instance of `key` that is being started becomes ready."""
        starting = next(i for i in self.instances(key) if i.state.value in ("starting", "warming", "waking"))
        return self.do(ev.Ready(starting.id, starting.generation, observed))

    def failed(self, key: str, cause: Cause = Cause.CRASHED, detail: str = "") -> list[ac.Action]:
        told = ("starting", "warming", "sleeping", "waking")
        instance = next(i for i in self.instances(key) if i.state.value in told)
        return self.do(ev.Failed(instance.id, instance.generation, cause, detail))

    def slept(
        self, key: str, before: Mapping[str, int] = NOTHING, after: Mapping[str, int] = NOTHING
    ) -> list[ac.Action]:
        sleeping = next(i for i in self.instances(key) if i.state.value == "sleeping")
        return self.do(ev.Slept(sleeping.id, sleeping.generation, before, after))

    def released(self, key: str, **missing: int) -> list[ac.Action]:
        going = next(i for i in self.instances(key) if i.state.value in ("stopping", "releasing"))
        return self.do(ev.Released(going.id, going.generation, missing))

    def load(self, model: str, size: int | Need = 60, **options: Any) -> str:
        """A version with one instance, ready and never used."""
        key = self.add(model, size, **options)
        assert of(ac.Start, self.do(ev.LoadAsked(key))), f"{model} does not start"
        self.ready(key)
        return key

    # -- requests

    def ask(
        self,
        request: str,
        key: str,
        *,
        priority: Priority | None = None,
        max_wait: float | None = None,
        exclude: Iterable[str] = (),
        since: float | None = None,
        load: bool = True,
    ) -> list[ac.Action]:
        return self.do(ev.Arrived(request, key, priority, max_wait, frozenset(exclude), since, load))

    def finish(self, request: str, outcome: OutcomeKind = OutcomeKind.DONE) -> list[ac.Action]:
        lease = self.state.leases[request]
        return self.do(ev.Finished(request, lease.instance.id, lease.generation, outcome))

    def holder(self, request: str) -> str | None:
        """The instance that serves this request, None when none does."""
        lease = self.state.leases.get(request)
        return lease.instance.id if lease else None

    def seen(self, device: str, free: int, total: int = 100, **ours: int) -> list[ac.Action]:
        return self.do(ev.DeviceSeen(device, total, free, ours))


def granted(actions: Iterable[ac.Action]) -> list[str]:
    return [grant.request for grant in of(ac.Grant, actions)]


def refused(actions: Iterable[ac.Action]) -> dict[str, str]:
    return {refuse.request: refuse.code for refuse in of(ac.Refuse, actions)}


def started(actions: Iterable[ac.Action]) -> list[str]:
    return [start.version.split("@")[0] for start in of(ac.Start, actions)]


def stopped(actions: Iterable[ac.Action]) -> list[str]:
    return [stop.instance.rsplit("-", 1)[0] for stop in of(ac.Stop, actions)]


FOREVER = inf
