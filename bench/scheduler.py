"""What a decision costs: CPU microseconds of the scheduler, alone on a virtual clock.

    python bench/scheduler.py [--json] [--rounds 5]

Two numbers. `arrive_finish`: a request for a ready model arrives and finishes. `per_event`: a mixed load,
with 10 versions and 100 queued requests, and with 1,000 versions and 100,000 queued; four models are in
memory and serve, the others wait and are swapped in. The rounds of both sizes alternate; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import deque
from statistics import median
from time import process_time

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Device, DeviceKind, Need, OutcomeKind, Policy, Share, Spec

RESIDENT = 4
SLOTS = 4
EVENTS = 4_000
PAIRS = 20_000


def yard(versions: int) -> tuple[Scheduler, list[str]]:
    scheduler = Scheduler(queue_bound=10**9)
    scheduler.handle(ev.DeviceAdded(Device("gpu0", DeviceKind.DECLARED, 100 * RESIDENT, 100 * RESIDENT)), 0.0)
    names = []
    policy = Policy(queue_bound=10**9, max_wait=1e9, patience=1.0, min_residency=0.5)
    for number in range(versions):
        spec = Spec(f"m{number}", "0" * 12, "fake", slots=SLOTS)
        scheduler.handle(ev.Added(spec, policy, Need((Share("accelerator", 100),))), 0.0)
        names.append(spec.version)
    return scheduler, names


def arrive_finish() -> float:
    """Microseconds of CPU for one request on a ready model: two events."""
    scheduler, names = yard(RESIDENT)
    for name in names:
        scheduler.handle(ev.LoadAsked(name), 0.0)
    for instance in list(scheduler.state.instances.values()):
        scheduler.handle(ev.Ready(instance.id, 1), 1.0)
    requests = [f"r{number}" for number in range(PAIRS)]
    began = process_time()
    now = 2.0
    for request in requests:
        now += 0.001
        (grant,) = scheduler.handle(ev.Arrived(request, names[0]), now)
        assert isinstance(grant, ac.Grant)
        scheduler.handle(ev.Finished(request, grant.instance, grant.generation, OutcomeKind.DONE), now)
    return (process_time() - began) / PAIRS * 1e6


class Mixed:
    """A constant number of queued requests: whoever finishes is replaced by a newcomer to some version."""

    def __init__(self, versions: int, queued: int) -> None:
        self.scheduler, self.names = yard(versions)
        self.now = 0.0
        self.count = 0
        self.todo: deque[ac.Action] = deque()
        for number in range(queued):
            self.arrive(number % versions)

    def handle(self, event: ev.Event) -> None:
        self.todo.extend(self.scheduler.handle(event, self.now))

    def arrive(self, version: int) -> None:
        self.count += 1
        self.handle(ev.Arrived(f"r{self.count}", self.names[version]))

    def run(self, events: int) -> float:
        """Microseconds of CPU per event."""
        done = 0
        began = process_time()
        while done < events:
            action = self.todo.popleft()
            self.now += 0.01
            match action:
                case ac.Grant(request, instance, generation):
                    self.handle(ev.Finished(request, instance, generation, OutcomeKind.DONE))
                    self.arrive(self.count * 7919 % len(self.names))
                    done += 2
                case ac.Start(instance, generation):
                    self.handle(ev.Ready(instance, generation))
                    done += 1
                case ac.Stop(instance, generation):
                    self.handle(ev.Released(instance, generation))
                    done += 1
            due = self.scheduler.next_deadline()
            if due is not None and (due <= self.now or not self.todo):
                self.now = max(self.now, due)
                self.handle(ev.Tick())
                done += 1
        return (process_time() - began) / done * 1e6


def measure(rounds: int) -> dict[str, object]:
    small, large = Mixed(10, 100), Mixed(1_000, 100_000)
    small.run(EVENTS)
    large.run(EVENTS)
    pairs, few, many = [], [], []
    for _ in range(rounds):
        pairs.append(arrive_finish())
        few.append(small.run(EVENTS))
        many.append(large.run(EVENTS))
    return {
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "rounds": rounds,
        "arrive_finish_us": round(median(pairs), 2),
        "per_event_us_10_versions_100_queued": round(median(few), 2),
        "per_event_us_1000_versions_100000_queued": round(median(many), 2),
        "ratio": round(median(many) / median(few), 2),
        "starts": small.scheduler.state.sequence + large.scheduler.state.sequence,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = measure(options.rounds)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for name, value in result.items():
        print(f"{name:45} {value}")


if __name__ == "__main__":
    main()
