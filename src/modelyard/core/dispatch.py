"""Dispatch, the second level: which ready instance serves a request. O(instances of the version), local.

Called by the scheduler's request handlers, which tell it of each turn and of each answer as well.

Of several replicas a request gets the one where it is likely to end first: pace x (what runs there + 1). The
pace is the seconds that a replica worked for a unit of work, lately (`learn_pace`); of one that nobody
knows it is taken to be the fastest's. Those that are about as fast and as free as the first count as it, and
of them the one that was given the fewest has its turn: equal replicas get equal shares.

A slower one is given nothing while a faster one has little to do, so nobody would learn that it has become
fast. Where a request would end s times its duration later, it is tried again once in AGAIN x s requests for
each of the others: however many are slow, and how slow, requests take 1 / AGAIN longer in the mean for that,
no more. What was known of it before is forgotten then.
"""

from __future__ import annotations

from operator import attrgetter
from zlib import crc32

from modelyard.core.state import LIVE, Instance, Version, Waiting

NOBODY: frozenset[str] = frozenset()
ABOUT = 4  # a quarter of the slots more or less: as free
AS_FAST, LITTLE = 1.5, 0.01  # times the pace, or seconds more that a request takes: as fast
AGAIN = 32
ANSWERS, WINDOW = 16, 2.0  # one after the other, and seconds: a pace is the mean of whatever is longer, about
BEHIND = 256  # turns that a replica has to catch up with at most


def pick(version: Version, exclude: frozenset[str] = NOBODY, prefix: int | None = None) -> Instance | None:
    """A ready instance with a free slot that did not fail this request; None when all are full. Of several,
    the one that this beginning leads to, with a `prefix`; else one where it ends soon. None, too, when the
    version is closed."""
    if version.closed_until is not None:
        return None
    found = [each for each in version.ready if each.free_slots() > 0 and each.id not in exclude]
    if len(found) < 2:
        return found[0] if found else None
    if prefix is not None:
        return max(found, key=lambda each: _attraction(prefix, each.id))
    return _soonest(version, found)


def _soonest(version: Version, found: list[Instance]) -> Instance:
    """One where a request is likely to end first, or one that is due to be tried again."""
    usual = min([each.pace for each in found if each.pace], default=1.0)
    paces = [each.pace or usual for each in found]
    ends = [pace * (len(each.leases) + 1) for pace, each in zip(paces, found, strict=True)]
    soonest = min(ends)
    best = ends.index(soonest)
    fast = paces[best] * max(AS_FAST, 1.0 + LITTLE / (version.service_seconds or 1.0))
    free = len(found[best].leases) + version.capacity // ABOUT
    again = AGAIN * (len(version.ready) - 1)
    turns = []
    for each, pace, end in zip(found, paces, ends, strict=True):
        if pace <= fast and len(each.leases) <= free:
            turns.append(each)
        elif version.given - each.turn >= again * (end / soonest - 1.0):
            return each
    return min(turns, key=_granted)


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


def count_turn(version: Version, instance: Instance, now: float) -> None:
    """It is given one more request; its lease comes after this."""
    if version.given - instance.turn > AGAIN * (len(version.ready) - 1):
        instance.worked = instance.work = 0.0  # its pace holds until it has answered
    version.given += 1
    instance.turn = version.given
    instance.granted += 1
    if len(version.ready) > 1:
        least = max(map(_granted, version.ready)) - BEHIND
        instance.granted = max(instance.granted, least)
    if not instance.leases:
        instance.working_since = now


def learn_pace(instance: Instance, work: float, seconds: float, now: float) -> None:
    """It ended so much work, which took so many seconds beside what else it had to do. None for its first
    answer: that is slow where there is still something to make ready."""
    since, instance.working_since = now - instance.working_since, now
    if work and (since or instance.worked):
        kept = max(0.0, 1.0 - since / max(ANSWERS * seconds, WINDOW))
        instance.worked = instance.worked * kept + since
        instance.work = instance.work * kept + work
        instance.pace = instance.worked / instance.work
