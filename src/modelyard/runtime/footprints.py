"""Footprints: what instances really took, how long they loaded, how soon they answered, for the next start.

The driver observes and asks; compose keeps them in the registry, and takes what other servers keep there. A
footprint corrects an estimate, it never decides. All of it happens on one event loop.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite

from modelyard.core.types import Need, Parallel, Spec, WarmUp
from modelyard.engines.base import Files
from modelyard.runtime.timing import SAMPLE, Timing, timing, with_one_more

__all__ = ["Footprint", "Footprints", "Key", "footprint_of", "key_of"]

FIRST_MARGIN = 0.15
LAST_MARGIN = 0.03
MAX_ENTRIES = 1_000
_FORGET = 0.25  # how much of the way down a smaller observation pulls


@dataclass(frozen=True, slots=True)
class Key:
    """What a footprint is of: files and parameters by digest, the engine, the kind of device."""

    files: str
    engine: str
    parameters: str
    device: str


def key_of(spec: Spec, files: Files, device: str, rung: str = "") -> Key:
    """The key of this version with these files on this kind of device, awake or asleep on a rung."""
    names = {role: file.digest or f"{file.path}:{file.size}" for role, file in files.items()}
    parameters: dict[str, object] = {"slots": spec.slots, "parameters": dict(spec.parameters)}
    if spec.warm_up != WarmUp():  # it takes its time
        parameters["warm_up"] = asdict(spec.warm_up)
    if spec.parallel != Parallel():
        parameters["parallel"] = asdict(spec.parallel)
    if rung:
        parameters["asleep"] = rung
    return Key(_digest(names), spec.engine, _digest(parameters), device)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Footprint:
    """What was observed of one key. `bytes` are by position of the need's shares, 0 where nothing could be
    measured; `loads` are the last durations from start to ready, `first_tokens` those of the first streamed
    answer after it until its first byte, in seconds; `seen` is when it was observed last."""

    bytes: tuple[int, ...] = ()
    observations: int = 0
    loads: tuple[float, ...] = ()
    first_tokens: tuple[float, ...] = ()
    seen: float = 0.0

    @property
    def load(self) -> Timing | None:
        """How long it usually loads; None while unknown."""
        return timing(self.loads)

    @property
    def first_token(self) -> Timing | None:
        """How soon it usually answers after it became ready; None while unknown."""
        return timing(self.first_tokens)

    @property
    def margin(self) -> float:
        """What is added to the bytes: 15 % after one observation, shrinking to 3 %."""
        return max(LAST_MARGIN, FIRST_MARGIN / max(1, self.observations))

    def learned(self, need: Need) -> Need:
        """The estimate, corrected by what was observed; the same need when that says nothing about it. A
        share that has room for what comes later needs no margin."""
        if len(self.bytes) != len(need.shares) or not any(self.bytes):
            return need
        shares = tuple(
            replace(share, bytes=round(observed * (1 if share.later else 1 + self.margin)))
            if observed
            else share
            for share, observed in zip(need.shares, self.bytes, strict=True)
        )
        return replace(need, shares=shares, known=True)

    def observed(
        self,
        sizes: Sequence[int],
        *,
        now: float,
        load_seconds: float | None = None,
        first_token: float | None = None,
    ) -> Footprint:
        """With one observation more. A higher size counts at once, a lower one pulls down slowly; sizes that
        are all 0 say nothing."""
        timed = replace(
            self,
            loads=with_one_more(self.loads, load_seconds),
            first_tokens=with_one_more(self.first_tokens, first_token),
            seen=now,
        )
        if not any(sizes):
            return timed
        previous = self.bytes if len(self.bytes) == len(sizes) else (0,) * len(sizes)
        return replace(
            timed,
            bytes=tuple(_peak(old, new) for old, new in zip(previous, sizes, strict=True)),
            observations=self.observations + 1 if previous == self.bytes else 1,
        )


def _peak(old: int, new: int) -> int:
    if new <= 0:
        return old
    return new if new >= old else round(old + _FORGET * (new - old))


class Footprints:
    """What this process has seen, and what it was told of others. `clock` returns seconds since the epoch."""

    def __init__(self, *, limit: int = MAX_ENTRIES, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._entries: dict[Key, Footprint] = {}
        self._changed: set[Key] = set()

    def get(self, key: Key) -> Footprint | None:
        """What is known of this key."""
        return self._entries.get(key)

    def observe(
        self,
        key: Key,
        sizes: Sequence[int],
        *,
        need: Need | None = None,
        load_seconds: float | None = None,
        first_token: float | None = None,
    ) -> Footprint:
        """Keep one observation and return the new footprint. `sizes` are own bytes per share; they count
        only where there are as many as `need` has shares, and some that are not 0. The footprints not seen
        for longest go when there are too many."""
        before = self._entries.get(key) or Footprint()
        fits = need is None or len(need.shares) == len(sizes)
        after = before.observed(
            sizes if fits else (), now=self._clock(), load_seconds=load_seconds, first_token=first_token
        )
        self._set(key, after)
        self._changed.add(key)
        return after

    def changed(self) -> Mapping[Key, Footprint]:
        """What was observed here and is not `kept` yet."""
        return {key: self._entries[key] for key in self._changed}

    def kept(self, footprints: Mapping[Key, Footprint]) -> None:
        """These are kept where others find them."""
        self._changed -= {key for key, one in footprints.items() if self._entries.get(key) is one}

    def merge(self, footprints: Mapping[Key, Footprint]) -> Collection[Key]:
        """Take those that others have kept and seen later than what is known; returns their keys."""
        later = {key: one for key, one in footprints.items() if one.seen > self._seen(key)}
        for key, footprint in later.items():
            self._set(key, footprint)
        self._changed -= later.keys()
        return later.keys() & self._entries.keys()

    def _seen(self, key: Key) -> float:
        return self._entries[key].seen if key in self._entries else -1.0

    def _set(self, key: Key, footprint: Footprint) -> None:
        self._entries[key] = footprint
        while len(self._entries) > self._limit:
            gone = min(self._entries, key=self._seen)
            del self._entries[gone]
            self._changed.discard(gone)


def footprint_of(fields: Mapping[str, object]) -> Footprint:
    """A footprint from JSON. Raises KeyError, ValueError."""
    sizes, observations, seen = fields["bytes"], fields["observations"], fields["seen"]
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError("bytes is not a list of sizes")
    if not isinstance(observations, int) or not isinstance(seen, int | float) or not isfinite(seen):
        raise ValueError("observations or seen is no number")
    loads, first_tokens = _seconds(fields["loads"]), _seconds(fields["first_tokens"])
    return Footprint(tuple(sizes), observations, loads, first_tokens, seen)


def _seconds(values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(
        isinstance(one, int | float) and 0 <= one < inf for one in values
    ):
        raise ValueError("a list of durations is not one")
    return tuple(values[-SAMPLE:])
