"""Rates: how many requests a version is given in a span of time, and pauses that its server asked for.

Called by the scheduler's request handlers and by admission. A limit of N requests in P seconds holds for any
P seconds: the next one is granted when the N-th before it is P seconds old. While a version is closed nobody
is granted a slot of its instances; whoever waits is served when it opens, at the timer `rate`.
"""

from __future__ import annotations

from modelyard.core.state import State, Version


def granted(state: State, version: Version, now: float) -> None:
    """One more was granted now: close it when that was the last one of its span. It has a limit."""
    version.grants.append(now)
    renew(state, version, now)


def pause(state: State, version: Version, until: float, now: float) -> None:
    """Its server wants to be left alone until then."""
    version.paused_until = max(version.paused_until, until)
    close(state, version, version.paused_until, now)


def renew(state: State, version: Version, now: float) -> None:
    """Close it for as long as its limit says, of which there may be another one, and its server."""
    close(state, version, version.paused_until, now)
    limit = version.policy.rate_limit
    if limit is None:
        version.grants.clear()
        return
    while len(version.grants) > limit.requests:
        version.grants.popleft()
    if len(version.grants) == limit.requests:
        close(state, version, version.grants[0] + limit.per, now)


def close(state: State, version: Version, until: float, now: float) -> None:
    """Give out no slot of it until then; a later end that was said before stays."""
    if until > max(now, version.closed_until or 0.0):
        version.closed_until = until
        state.timers.set(("rate", version.key), until)


def look(version: Version, now: float) -> None:
    """Open it if its time is over."""
    if version.closed_until is not None and now >= version.closed_until:
        version.closed_until = None


def spans(version: Version, ahead: int) -> float:
    """Seconds that `ahead` requests take at most by its limit alone."""
    limit = version.policy.rate_limit
    return 0.0 if limit is None else -(-ahead // limit.requests) * limit.per


def wait(version: Version, ahead: int, now: float) -> float:
    """Seconds until one more may be granted after `ahead` others, by its limit and its pauses alone."""
    closed = max(0.0, (version.closed_until or now) - now)
    limit = version.policy.rate_limit
    if limit is None:
        return closed
    whole, rest = divmod(ahead, limit.requests)
    before = len(version.grants) - limit.requests + rest  # the one that has to be `per` seconds old by then
    first = max(0.0, version.grants[before] + limit.per - now) if before >= 0 else 0.0
    return max(closed, first) + whole * limit.per
