"""Admission: what a request's wait is bound by, what it is likely to be, and whether it may queue at all.

The sum over everything ahead is kept up to date as queues change, so that an arrival costs O(1) however long
the line is. Called by the scheduler; `refresh` is the only function that writes (the running sums).

The bound of a request of class c to version v is a sum over every version u in which requests of class >= c
wait, and v itself:

    turns(u)  ⌈requests of class >= c ahead in u / slots⌉ (in v, requests that hold a slot count as ahead)
    swap(u)   max(patience, minimum residency) + drain cap + release cap + load cap

When every version ahead is ready, nobody's memory is taken before the request had its turn: then the bound is
the sum of turns x request timeout, and swap(v) if v is not ready. Else older requests for other versions may
put u out whenever it served as many as it has slots, and each time it keeps them waiting for the last one
that came before them: the sum of

    turns x the longer of swap and request timeout, + ⌊(ahead - turns) / slots⌋ x request timeout
    + one request timeout if u is ready, for what its slots hold now

and swap(v). With one slot that is a swap for each request ahead; the time in which a request runs is the
drain of the swap that follows it. A version that was asked to load adds a swap, requests or not.

Patience and load cap are u's own; residency, drain and release are those of whoever leaves, so the largest of
all versions. The bound is stated for files that are cached, known footprints, `when_full: evict`, no failure,
no memory taken by others, no later request of a higher class, no turn that the floor gives to a lower one and
no pause that a server asks for later.

The estimate has learned durations in place of the caps (0 s for what was never seen), and one swap for each
version that is not ready.

Where a version has a `rate_limit` of N requests in P seconds, its ⌈requests ahead / N⌉ x P are added, and to
v's own what is left of the span before, or of a pause that its server asked for. While a version is closed,
its memory may be taken, whoever waits there: one that has a limit, and v if it is closed, count as not ready.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from modelyard.core import rates
from modelyard.core.dispatch import pick
from modelyard.core.lifecycle import FilesState
from modelyard.core.state import CLASSES, NOTHING, Ahead, State, Version, Waiting
from modelyard.core.types import Priority, WhenFull
from modelyard.core.units import in_units

WITHOUT_END = 1e9  # seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """`code` is empty when the request may queue; else an error code with its message."""

    code: str = ""
    message: str = ""
    retry_after: float | None = None
    bound: float = 0.0
    estimate: float = 0.0


@dataclass(slots=True)
class Sums:
    """Running totals over all versions, per class, of what is ahead of a newcomer; and the largest caps.
    `stale`: a version came, went or changed its policy; `recap` is due before the next request."""

    ahead: list[Ahead] = field(default_factory=lambda: [NOTHING] * CLASSES)
    residency: float = 0.0
    drain: float = 0.0
    release: float = 0.0
    stale: bool = False


def recap(state: State, sums: Sums) -> None:
    """Take the caps of all policies anew. O(versions): once for an event, however much it changes."""
    sums.stale = False
    policies = [version.policy for version in state.versions.values()]
    sums.residency = max((policy.min_residency for policy in policies), default=0.0)
    sums.drain = max((policy.drain for policy in policies), default=0.0)
    sums.release = max((policy.release_cap for policy in policies), default=0.0)
    sums.ahead = [NOTHING] * CLASSES
    for version in state.versions.values():
        version.contribution = [NOTHING] * CLASSES
        refresh(state, sums, version)


def refresh(state: State, sums: Sums, version: Version) -> None:
    """Bring the sums up to date after the version's queue or readiness changed. O(1)."""
    ahead = 0
    for priority in reversed(range(CLASSES)):
        ahead += version.queue.counts[priority]
        asked = version.asked_since is not None and priority <= version.policy.priority
        now = _cost(state, sums, version, ahead, asked) if ahead or asked else NOTHING
        before = version.contribution[priority]
        if now != before:
            version.contribution[priority] = now
            total = sums.ahead[priority].plus(now).less(before)
            sums.ahead[priority] = total if total.versions else NOTHING  # rounding errors do not add up


def swap_bound(sums: Sums, version: Version) -> float:
    """Seconds until a version that is not ready is, once everything ahead of it had its turn."""
    policy = version.policy
    opens = max(policy.patience, sums.residency)
    return _finite(opens) + _finite(sums.drain) + _finite(sums.release) + _finite(policy.load_cap)


def _finite(seconds: float) -> float:
    """Without end as a number that sums can be made of, and taken out of again."""
    return min(seconds, WITHOUT_END)


def wake_seconds(version: Version) -> float | None:
    """What its instances that sleep, or are on their way there or back, usually take to be ready; None where
    none does, or nobody knows."""
    known = [instance.rung.seconds for instance in version.instances.values() if instance.rung is not None]
    return min((seconds for seconds in known if seconds is not None), default=None)


def swap_estimate(state: State, version: Version) -> float:
    """As learned: nobody is refused for a load that was never tried, which would be never learned, too."""
    wake = wake_seconds(version)
    return (wake if wake is not None else version.load_seconds or 0.0) + state.room_seconds


def _cost(state: State, sums: Sums, version: Version, ahead: int, asked: bool) -> Ahead:
    turns = version.turns(ahead)
    estimate = turns * version.service_seconds
    if not version.ready:
        estimate += swap_estimate(state, version)
    longest = turns * _finite(version.policy.request_timeout)
    swaps = _interrupted(sums, version, ahead) + (swap_bound(sums, version) if asked else 0.0)
    spans = rates.spans(version, ahead)
    cold = asked or not version.ready or version.policy.rate_limit is not None
    return Ahead(estimate, longest + spans, swaps + spans, 1, int(cold))


def _interrupted(sums: Sums, version: Version, ahead: int) -> float:
    """Seconds that `ahead` requests of a version take at most while others keep putting it out."""
    turns, longest = version.turns(ahead), _finite(version.policy.request_timeout)
    again = (ahead - turns) // version.capacity + (1 if version.ready else 0)
    return turns * max(longest, swap_bound(sums, version)) + again * longest


def waits(state: State, sums: Sums, version: Version, priority: Priority, now: float) -> tuple[float, float]:
    """(estimate, bound) in seconds of the wait of a request of this class that arrives now."""
    others = sums.ahead[priority].less(version.contribution[priority])
    limited = version.policy.rate_limit is not None or version.closed_until is not None
    cold = others.cold or version.contribution[priority].cold or limited
    held = sum(len(instance.leases) for instance in version.ready)
    ahead = sum(version.queue.counts[priority:]) + held
    turns = version.turns(ahead)
    estimate = max(0.0, others.estimate) + turns * version.service_seconds
    if not version.ready:
        estimate += swap_estimate(state, version)
    if cold:
        bound = others.swaps + _interrupted(sums, version, ahead) + swap_bound(sums, version)
    else:
        bound = others.turns + turns * _finite(version.policy.request_timeout)
        bound += 0.0 if version.ready else swap_bound(sums, version)
    closed = rates.wait(version, sum(version.queue.counts[priority:]), now)
    return max(estimate, closed), bound + closed


def expected(state: State, sums: Sums, version: Version, now: float) -> tuple[float, float]:
    """As far as is known, of a request of its usual class that arrives now: seconds until the version has a
    ready instance, and seconds behind others beside that, infinite where it would be refused at once."""
    queue, policy = version.queue, version.policy
    never = version.never is not None and not version.ready
    if never or version.error_now(now) is not None or queue.count >= policy.queue_bound:
        return 0.0, inf
    if pick(version) is not None:
        return 0.0, 0.0
    coming = [instance.started_at for instance in version.live()]
    held = sum(len(instance.leases) for instance in version.ready)
    turns = -(-(queue.count + held) // (version.capacity * max(1, len(coming))))
    wait = max(turns * version.service_seconds, rates.wait(version, queue.count, now))
    if version.ready:
        return 0.0, wait
    wake = wake_seconds(version)
    load = version.usual_load() if wake is None else wake
    if coming:
        return max(0.0, load - (now - min(coming))), wait
    others = sums.ahead[policy.priority].less(version.contribution[policy.priority])
    return load, wait + max(0.0, others.estimate) + state.room_seconds


def admit(state: State, sums: Sums, waiting: Waiting, now: float) -> Verdict:
    """Whether a request that cannot be served at once may queue; nothing is changed."""
    version = state.versions[waiting.version]
    model, policy, count = version.spec.model, version.policy, version.queue.count
    if version.never is not None and not version.ready:
        return Verdict("never_fits", never_message(version))
    if (error := version.error_now(now)) is not None:
        return Verdict(*error, version.backoff_until - now)
    if count >= policy.queue_bound:
        message = f"{count} requests wait for {model} already (its queue_bound is {policy.queue_bound})"
        return Verdict("queue_full", message, _soon(version.service_seconds))
    if len(state.waiting) >= state.queue_bound:
        message = f"{len(state.waiting)} requests wait for all models already (server.queue_bound)"
        return Verdict("queue_full", message, _soon(version.service_seconds))
    estimate, bound = waits(state, sums, version, waiting.priority, now)
    max_wait = waiting.deadline - waiting.queued_at
    if version.files is FilesState.CACHED and estimate > max_wait and policy.when_full is WhenFull.EVICT:
        message = f"{model} would be ready in about {estimate:.1f} s, after the max_wait of {max_wait:g} s"
        return Verdict("wait_too_long", message, _soon(estimate - max_wait))
    return Verdict(bound=bound, estimate=estimate)


def never_message(version: Version) -> str:
    never = version.never
    assert never is not None
    return f"{version.spec.model} needs {in_units(never.need)} and can never fit: {never.reason}"


def _soon(seconds: float) -> float:
    return max(1.0, seconds)
