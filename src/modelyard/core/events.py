"""What happened: the only input of `Scheduler.handle`. Frozen, and complete enough to replay.

An event about an instance carries the generation of the command it answers; the scheduler ignores one whose
generation is not current. `request` is an id that is unique per request, not per attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelyard.core.record import record
from modelyard.core.types import Cause, Device, Need, OutcomeKind, Policy, Priority, Spec

# -- requests -------------------------------------------------------------------------------------------


@record
class Arrived:
    """A request wants a slot of `version`.

    `max_wait` is how long it may queue from now on, in seconds: for a retry, what its waits before have left
    of it. `exclude` names instances that failed this request already; `since` is given by a retry: when it
    first arrived, to keep its place. `load` False: refuse when nothing is ready or on its way. None for
    `priority` and `max_wait` means the policy's. `prefix` is a hash of its beginning, where its version wants
    those that begin alike on the same replica.
    """

    request: str
    version: str
    priority: Priority | None = None
    max_wait: float | None = None
    exclude: frozenset[str] = frozenset()
    since: float | None = None
    load: bool = True
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client left while its request was waiting. (With a lease, `Finished` says so.)"""

    request: str


@record
class Finished:
    """The lease of `request` on this instance ended; `generation` is the one it was granted with. `rest`: its
    server asked to be left alone for so many seconds. `work`: how much was done, in any unit that is the same
    for all requests of a version; 0 says nothing of how fast the instance is."""

    request: str
    instance: str
    generation: int
    outcome: OutcomeKind
    rest: float = 0.0
    work: float = 1.0


# -- instances ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Warming:
    """The process answers its health check: `starting` becomes `warming`; the first generation comes next."""

    instance: str
    generation: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Terminal for Start and Wake: one token was generated. `observed`: its own bytes per device, empty if
    unknown."""

    instance: str
    generation: int
    observed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal for Start and Wake: it will not become ready. Terminal for Sleep: it does not sleep."""

    instance: str
    generation: int
    cause: Cause
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Slept:
    """Terminal for Sleep: its own bytes per device, as measured `before` and `after`; both empty where it
    could not be measured."""

    instance: str
    generation: int
    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exited:
    """The process went away. Its memory is not free yet: only `Released` frees the ledger."""

    instance: str
    generation: int
    cause: Cause
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Released:
    """Terminal for Stop and Release: the process tree is gone. `missing` are the bytes per device that the
    device had not given back when the release cap passed; they count as foreign."""

    instance: str
    generation: int
    missing: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Doubted:
    """It has been silent for long, which need not be a failure: does it still live?"""

    instance: str
    generation: int


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to a Probe: does the instance still answer its health check? `reachable` False: it does not
    even take a connection, or closes it."""

    instance: str
    generation: int
    alive: bool
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class Observed:
    """Own bytes of a running instance, per device, measured now."""

    instance: str
    bytes: Mapping[str, int]


# -- files and devices ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cached:
    """Terminal for Fetch: the files of a version lie in the cache; `need` is the estimate read from them."""

    version: str
    need: Need


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """Terminal for Fetch. `code` is an error code of the taxonomy."""

    version: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class FilesLost:
    """The files of a version are not in the cache any more, and are fetched when it is wanted. With a `code`
    (an error code of the taxonomy) they were not what they have to be: whoever waits is told so."""

    version: str
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Learned:
    """A better `need`, and the usual load time in seconds (None: unknown), from what was really used."""

    version: str
    need: Need
    load_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceSeen:
    """A device's own truth now: `free` bytes, and the bytes of our instances found there."""

    device: str
    total: int
    free: int
    ours: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """A device is gone, and with it what was on it. It is back with its next DeviceSeen."""

    device: str
    reason: str


# -- operator -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceAdded:
    device: Device


@dataclass(frozen=True, slots=True)
class FenceAsked:
    """Place nothing on this device from now on, and let who is there finish what runs (`now`: cut it), then
    leave. An empty `reason` takes the fence away."""

    device: str
    reason: str = ""
    now: bool = False


@dataclass(frozen=True, slots=True)
class Added:
    """A version exists now. `cached` is its Need if its files are there already."""

    spec: Spec
    policy: Policy
    cached: Need | None = None


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    version: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class KeepAliveAsked:
    """A client says how long the instances of a version that are ready now shall stay when idle (seconds;
    inf: for ever), in place of the policy's keep-alive. Later ones have the policy's again."""

    version: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Removed:
    """The version goes: waiting requests are refused, running ones finish, then it leaves. `replaced_by` is
    the version that its model has from now on: it inherits what is known of the demand, and if this one is in
    memory, it is loaded as by a LoadAsked that puts nobody out."""

    version: str
    replaced_by: str = ""


@dataclass(frozen=True, slots=True)
class QueueBounded:
    """So many requests may wait in all from now on; those that wait already stay."""

    bound: int


Part = DeviceAdded | Added | PolicyChanged | Removed | QueueBounded


@dataclass(frozen=True, slots=True)
class Changed:
    """All of these at once: nothing is decided before the last of them has been taken."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class LoadAsked:
    """Have one instance of this version, as if a request waited for it. `evict` False: only in memory that is
    free, or on its way back. Answered by Loaded."""

    version: str
    evict: bool = True


@dataclass(frozen=True, slots=True)
class UnloadAsked:
    """Drain and stop every instance of this version (or one of them). `now`: cut what runs."""

    version: str
    instance: str | None = None
    now: bool = False


@dataclass(frozen=True, slots=True)
class ShutdownAsked:
    """Refuse what waits, drain what runs; `now`: cut it."""

    now: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; sent no later than `Scheduler.next_deadline()`."""


Event = (
    Arrived
    | Cancelled
    | Finished
    | Warming
    | Ready
    | Failed
    | Slept
    | Exited
    | Released
    | Doubted
    | Probed
    | Observed
    | Cached
    | FetchFailed
    | FilesLost
    | Learned
    | DeviceSeen
    | DeviceLost
    | DeviceAdded
    | FenceAsked
    | Added
    | PolicyChanged
    | KeepAliveAsked
    | Removed
    | QueueBounded
    | Changed
    | LoadAsked
    | UnloadAsked
    | ShutdownAsked
    | Tick
)
