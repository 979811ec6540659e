"""Dispatch, the second level: which ready instance serves a request. O(instances of the version), local.

Called by the scheduler's request handlers; reads only.
"""

from __future__ import annotations

from zlib import crc32

from modelyard.core.state import LIVE, Instance, Version, Waiting

NOBODY: frozenset[str] = frozenset()


def pick(version: Version, exclude: frozenset[str] = NOBODY, prefix: int | None = None) -> Instance | None:
    """The ready instance with the most free slots that did not fail this request; of several, the one that
    was given a request longest ago. With a `prefix`, the one that this beginning leads to, among those that
    have a free slot. None when all are full."""
    if prefix is not None:
        those = [each for each in version.ready if each.free_slots() > 0 and each.id not in exclude]
        return max(those, key=lambda each: _attraction(prefix, each.id), default=None)
    best: Instance | None = None
    most = 0
    for instance in version.ready:  # in the order of their last grants
        free = instance.free_slots()
        if free > most and instance.id not in exclude:
            best, most = instance, free
    return best


def _attraction(prefix: int, instance: str) -> tuple[int, str]:
    """How much a beginning is drawn to an instance (rendezvous hashing): where one comes or goes, only its
    own share of all beginnings moves, and nothing has to be remembered."""
    mixed = (prefix ^ crc32(instance.encode())) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & 0xFFFFFFFFFFFFFFFF
    return mixed ^ mixed >> 32, instance


def next_pair(version: Version) -> tuple[Waiting, Instance] | None:
    """Who is served next, and where. A request that waits for another instance than those that are free lets
    the ones behind it pass."""
    waiting = version.queue.next()
    if waiting is None:
        return None
    instance = pick(version, waiting.exclude, waiting.prefix)
    if instance is not None:
        return waiting, instance
    if not waiting.exclude or pick(version) is None:
        return None
    for other in version.queue:
        instance = pick(version, other.exclude, other.prefix)
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
