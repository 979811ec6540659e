"""Dispatch, the second level: which ready instance serves a request. O(instances of the version), local.

Called by the scheduler's request handlers; reads only.
"""

from __future__ import annotations

from operator import attrgetter
from zlib import crc32

from modelyard.core.state import LIVE, Instance, Version, Waiting

NOBODY: frozenset[str] = frozenset()
ABOUT = 4  # a quarter of the slots more or less: as free


def pick(version: Version, exclude: frozenset[str] = NOBODY, prefix: int | None = None) -> Instance | None:
    """A ready instance with a free slot that did not fail this request; None when all are full. Of several,
    one that is about as free as any, and of those the one that was given the fewest requests. With a
    `prefix`, the one that this beginning leads to. None, too, when the version is closed."""
    if version.closed_until is not None:
        return None
    found = [
        (free, each) for each in version.ready if (free := each.free_slots()) > 0 and each.id not in exclude
    ]
    if len(found) < 2:
        return found[0][1] if found else None
    if prefix is not None:
        return max((each for _, each in found), key=lambda each: _attraction(prefix, each.id))
    least = max(free for free, _ in found) - version.capacity // ABOUT
    return min((each for free, each in found if free >= least), key=_granted)


_granted = attrgetter("granted")


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
