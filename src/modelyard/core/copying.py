"""A copy of a scheduler, to try events on: what changes is copied, what never changes is shared.

Used by `plan`. Cost: O(what waits + instances + leases + versions); a request that waits takes about a
microsecond.
"""

from __future__ import annotations

from dataclasses import fields, replace
from operator import attrgetter

from modelyard.core.scheduler import Scheduler
from modelyard.core.state import State, Version, Waiting

_values = attrgetter(*(each.name for each in fields(Waiting)))


def copy_of(scheduler: Scheduler) -> Scheduler:
    """A scheduler in the same state, which goes its own way from here."""
    copied = Scheduler()
    copied.state = _state(scheduler.state)
    copied.sums = replace(scheduler.sums, ahead=scheduler.sums.ahead.copy())
    return copied


def _state(state: State) -> State:
    waiting = {name: Waiting(*_values(each)) for name, each in state.waiting.items()}
    # A request that is being cut still holds a lease on an instance that is gone, of a version that may be.
    everyone = {lease.instance.id: lease.instance for lease in state.leases.values()} | state.instances
    known = {id(each.version): each.version for each in everyone.values()}
    known |= {id(version): version for version in state.versions.values()}
    versions = {key: _version(version, waiting) for key, version in known.items()}
    instances = {name: replace(each, version=versions[id(each.version)]) for name, each in everyone.items()}
    leases = {
        name: replace(lease, instance=instances[lease.instance.id]) for name, lease in state.leases.items()
    }
    for name, instance in instances.items():
        instance.leases = {request: leases[request] for request in everyone[name].leases}
    for key, version in versions.items():
        version.instances = {name: instances[name] for name in known[key].instances}
        version.ready = [instances[instance.id] for instance in known[key].ready]
    return replace(
        state,
        ledger=state.ledger.copy(),
        versions={key: versions[id(version)] for key, version in state.versions.items()},
        instances={name: instances[name] for name in state.instances},
        waiting=waiting,
        leases=leases,
        line=state.line.copy(),
        timers=state.timers.copy(),
        dirty=state.dirty.copy(),
        watched=state.watched.copy(),
    )


def _version(version: Version, waiting: dict[str, Waiting]) -> Version:
    return replace(
        version,
        queue=version.queue.copy(waiting),
        contribution=version.contribution.copy(),
        grants=version.grants.copy(),
    )
