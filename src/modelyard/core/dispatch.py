"""Dispatch, the second level: which ready instance serves a request. O(instances of the version), local.

Called by the scheduler's request handlers; reads only.
"""

from __future__ import annotations

from modelyard.core.state import LIVE, Instance, Version, Waiting

NOBODY: frozenset[str] = frozenset()


def pick(version: Version, exclude: frozenset[str] = NOBODY) -> Instance | None:
    """The ready instance with the most free slots that did not fail this request; None when all are full."""
    best: Instance | None = None
    most = 0
    for instance in version.ready:
        free = instance.free_slots()
        if free > most and instance.id not in exclude:
            best, most = instance, free
    return best


def next_pair(version: Version) -> tuple[Waiting, Instance] | None:
    """Who is served next, and where. A request that waits for another instance than those that are free lets
    the ones behind it pass."""
    waiting = version.queue.next()
    if waiting is None:
        return None
    instance = pick(version, waiting.exclude)
    if instance is not None:
        return waiting, instance
    if not waiting.exclude or pick(version) is None:
        return None
    for other in version.queue:
        instance = pick(version, other.exclude)
        if instance is not None:
            return other, instance
    return None


def has_alternative(version: Version, exclude: frozenset[str]) -> bool:
    """Whether an instance outside `exclude` serves this version, or will.

    A suspect instance, or one that leaves or sleeps, may still be replaced, so that counts as well.
    """
    alive = 0
    for instance in version.instances.values():
        if instance.state not in LIVE:
            continue
        if instance.id not in exclude or instance.suspect:
            return True
        alive += 1
    return alive < max(1, version.policy.max_replicas)
