"""What the scheduler wants done: the only output of `Scheduler.handle`. The driver executes, in order.

A command to an instance (Start, Sleep, Wake, Stop, Release) carries a fresh generation and is answered by
exactly one terminal event: Ready or Failed for Start and Wake, Slept or Failed for Sleep, Released for Stop
and Release.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.core.record import record
from modelyard.core.types import Placement, Rung


@record
class Grant:
    """`request` holds one slot of this instance from now until Finished. `waited` and `loading` are seconds:
    the wait since its (latest) Arrived, and the part of it in which the instance was being started."""

    request: str
    instance: str
    generation: int
    waited: float
    loading: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """`request` will not be served; `code` is an error code of the taxonomy."""

    request: str
    code: str
    message: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """End the running attempt of `request` now; its Finished still comes."""

    request: str
    instance: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the files of a version into the cache. Answered by Cached or FetchFailed."""

    version: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start an instance of `version` at `placement`; its memory is reserved already. `deadline` is an
    absolute time."""

    instance: str
    generation: int
    version: str
    placement: Placement
    deadline: float
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """TERM, then KILL (`now`: KILL at once), then wait until the devices have the memory back, at most
    `release_cap` seconds."""

    instance: str
    generation: int
    release_cap: float
    reason: str
    now: bool = False


@dataclass(frozen=True, slots=True)
class Sleep:
    """Have it give its memory back, but for what it holds on this rung. Nothing runs on it. `deadline` is an
    absolute time."""

    instance: str
    generation: int
    rung: Rung
    deadline: float
    reason: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Have it take its memory again, which is reserved already, and serve. `deadline` is an absolute time."""

    instance: str
    generation: int
    rung: Rung
    placement: Placement
    deadline: float
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """The process is gone or must go at once: make sure of the whole tree, wait for the memory."""

    instance: str
    generation: int
    release_cap: float
    reason: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the instance's health check, within a short deadline. Answered by Probed."""

    instance: str
    generation: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A LoadAsked was met (`instance` is ready) or failed (`code`, `message`)."""

    version: str
    instance: str | None = None
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Something to show and to count: a swap with its reason and victims, a footprint learned, a gap booked
    as foreign. `fields` are for people and for metrics; nothing decides by them."""

    kind: str
    subject: str
    message: str
    fields: tuple[tuple[str, str | int | float], ...] = ()


Action = Grant | Refuse | Cut | Fetch | Start | Sleep | Wake | Stop | Release | Probe | Loaded | Note
