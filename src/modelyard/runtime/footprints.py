"""Footprints: what instances really took, how long they loaded and how soon they answered, kept for the next
start.

The driver observes and asks; compose records demand for `preload: auto`. A footprint corrects an estimate,
it never decides. Every method is safe to call from any thread; the ones that write block on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from modelyard.core.types import Need, Spec, WarmUp
from modelyard.engines.base import Files
from modelyard.runtime.timing import SAMPLE, Timing, timing, with_one_more

__all__ = ["FileFootprints", "Footprint", "Footprints", "Key", "key_of"]

FIRST_MARGIN = 0.15
LAST_MARGIN = 0.03
DEMAND_HALF_LIFE = 86_400.0  # seconds
MAX_ENTRIES = 1_000
_FORGET = 0.25  # how much of the way down a smaller observation pulls
_VERSION = 2
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """What a footprint is of: files and parameters by digest, the engine, the kind of device."""

    files: str
    engine: str
    parameters: str
    device: str


def key_of(spec: Spec, files: Files, device: str) -> Key:
    """The key of this version with these files on this kind of device."""
    names = {role: file.digest or f"{file.path}:{file.size}" for role, file in files.items()}
    parameters: dict[str, object] = {"slots": spec.slots, "parameters": dict(spec.parameters)}
    if spec.warm_up != WarmUp():  # it takes its time
        parameters["warm_up"] = asdict(spec.warm_up)
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
        """The estimate, corrected by what was observed; the same need when that says nothing about it."""
        if len(self.bytes) != len(need.shares) or not any(self.bytes):
            return need
        shares = tuple(
            replace(share, bytes=round(observed * (1 + self.margin))) if observed else share
            for share, observed in zip(need.shares, self.bytes, strict=True)
        )
        return Need(shares, known=True)

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
    """Keeps footprints, and how often each model is asked for, as long as its process lives. `clock` returns
    seconds since the epoch."""

    def __init__(self, *, limit: int = MAX_ENTRIES, clock: Callable[[], float] = time.time) -> None:
        self._lock = threading.RLock()
        self._limit = limit
        self._clock = clock
        self._entries: dict[Key, Footprint] = {}
        self._demand: dict[str, tuple[float, float]] = {}  # count, and the time it is of

    def get(self, key: Key) -> Footprint | None:
        """What is known of this key. Never blocks on the disk."""
        return self._entries.get(key)

    def all(self) -> Mapping[Key, Footprint]:
        """Everything that is known."""
        with self._lock:
            return dict(self._entries)

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
        with self._lock:
            before = self._entries.get(key) or Footprint()
            fits = need is None or len(need.shares) == len(sizes)
            after = before.observed(
                sizes if fits else (),
                now=self._clock(),
                load_seconds=load_seconds,
                first_token=first_token,
            )
            self._entries[key] = after
            while len(self._entries) > self._limit:
                del self._entries[min(self._entries, key=lambda one: self._entries[one].seen)]
            self._changed()
            return after

    def record_demand(self, asked: Mapping[str, int]) -> None:
        """Each of these models was asked for so many times more."""
        with self._lock:
            now = self._clock()
            for model, count in asked.items():
                self._demand[model] = (self._decayed(model, now) + count, now)
            while len(self._demand) > self._limit:
                del self._demand[min(self._demand, key=lambda one: self._decayed(one, now))]
            self._changed()

    def demand(self) -> Mapping[str, float]:
        """How often each model was asked for; what is a day old counts half."""
        with self._lock:
            now = self._clock()
            return {model: self._decayed(model, now) for model in self._demand}

    def _decayed(self, model: str, now: float) -> float:
        count, since = self._demand.get(model, (0.0, now))
        return float(count * 0.5 ** (max(0.0, now - since) / DEMAND_HALF_LIFE))

    def _changed(self) -> None:
        """Called under the lock after each change."""


class FileFootprints(Footprints):
    """Footprints in one JSON file, replaced whole at each change. A file that cannot be understood is set
    aside as `<name>.broken`, and said; one that cannot be written is said once, and they stay in memory."""

    def __init__(
        self, path: Path, *, limit: int = MAX_ENTRIES, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(limit=limit, clock=clock)
        self._path = path
        self._is_written = True
        self._load()

    def _load(self) -> None:
        try:
            content = json.loads(self._path.read_bytes())
            if content["version"] not in (1, _VERSION):
                raise ValueError(f"version {content['version']}")
            entries = {Key(**entry["key"]): _footprint(entry["footprint"]) for entry in content["footprints"]}
            demand = {
                model: (float(count), float(since)) for model, (count, since) in content["demand"].items()
            }
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            aside = self._path.with_name(self._path.name + ".broken")
            os.replace(self._path, aside)
            _log.warning("footprints.broken", path=str(self._path), kept=str(aside), error=str(error))
            return
        self._entries, self._demand = entries, demand

    def _changed(self) -> None:
        content = {
            "version": _VERSION,
            "footprints": [
                {"key": asdict(key), "footprint": asdict(footprint)}
                for key, footprint in self._entries.items()
            ],
            "demand": self._demand,
        }
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fresh.write_text(json.dumps(content))
            os.replace(fresh, self._path)
        except OSError as error:
            if self._is_written:
                _log.warning("footprints.not_written", path=str(self._path), error=str(error))
            self._is_written = False
        else:
            if not self._is_written:
                _log.warning("footprints.written_again", path=str(self._path))
            self._is_written = True


def _footprint(fields: Mapping[str, object]) -> Footprint:
    sizes, observations, seen = fields["bytes"], fields["observations"], fields["seen"]
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError("bytes is not a list of sizes")
    if not isinstance(observations, int) or not isinstance(seen, int | float):
        raise ValueError("observations or seen is no number")
    average = fields.get("load_seconds")  # all that version 1 kept
    loads = fields.get("loads", [] if average is None else [average])
    return Footprint(
        tuple(sizes), observations, _seconds(loads), _seconds(fields.get("first_tokens", [])), seen
    )


def _seconds(values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(one, int | float) and one >= 0 for one in values):
        raise ValueError("a list of durations is not one")
    return tuple(values[-SAMPLE:])
