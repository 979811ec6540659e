"""The nouns of the decision core: frozen values that configuration, runtime and scheduler share.

Sizes are bytes, times are seconds (float), tokens are integers. Nothing here reads a clock or a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from modelyard.core.languages import NO_PAIRS, Pairs


class Priority(IntEnum):
    """A class of requests. A higher class goes first and may take memory from a lower one."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class WhenFull(StrEnum):
    """What a version does when its memory is taken: put others out, wait until someone leaves, or say no."""

    EVICT = "evict"
    WAIT = "wait"
    FAIL = "fail"


class Packing(StrEnum):
    """Which of the devices that hold an instance it gets: the fullest, or the emptiest."""

    PACK = "pack"
    SPREAD = "spread"


class Affinity(StrEnum):
    """Which of the replicas that have a free slot a request gets: the one where it is likely to end first, or
    the same as others with the same beginning."""

    NONE = "none"
    PREFIX = "prefix"


class DeviceKind(StrEnum):
    RAM = "ram"
    CUDA = "cuda"
    ROCM = "rocm"
    DECLARED = "declared"


@dataclass(frozen=True, slots=True)
class Device:
    """One memory pool; `id` is a UUID, or `ram`. `budget` (≤ total) is what instances may reserve in all;
    `reserve` is what must stay free on the device whoever else uses it. Devices of one `group` have a faster
    way between them than to others; empty: nobody knows. `exclusive` is the engine profile whose models alone
    may be placed here; empty: any."""

    id: str
    kind: DeviceKind
    total: int
    budget: int
    name: str = ""
    reserve: int = 0
    group: str = ""
    exclusive: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of an instance's memory that lies on one device.

    `on` is `ram`, `accelerator` (any CUDA, ROCm or declared device) or a device id. Two accelerator shares
    of one need go to different devices. `mapped` maps file digests to bytes that are charged once per device
    however many instances map them. So many of the bytes are taken `later`, by its work: what it holds before
    says nothing of them.
    """

    on: str
    bytes: int
    mapped: Mapping[str, int] = field(default_factory=dict)
    later: int = 0

    @property
    def whole(self) -> int:
        """All its bytes, mapped files included."""
        return self.bytes + sum(self.mapped.values())


@dataclass(frozen=True, slots=True)
class Rung:
    """A way to sleep: the process stays, and holds `shares` of its own bytes, no mapped files. Those on an
    `accelerator` are on the devices that it was started on, in their order. `known`: they were measured.
    `seconds`: how long it usually takes to be ready again; None while nobody saw it. `first`: how long an
    instance may take to fall asleep for the first time, where that can be longer than its release cap."""

    name: str
    shares: tuple[Share, ...]
    known: bool = False
    seconds: float | None = None
    first: float = 0.0


@dataclass(frozen=True, slots=True)
class Need:
    """What one instance takes. `known` is False when nobody measured it: such starts go one at a time per
    device, and hold all that is free there until they are ready. `rungs`: how it can sleep, the engine's
    first choice first."""

    shares: tuple[Share, ...]
    known: bool = True
    rungs: tuple[Rung, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(share.whole for share in self.shares)


@dataclass(frozen=True, slots=True)
class Charge:
    """What one instance holds on one device: `bytes` of its own, and the mapped files it uses there. `total`
    is what the device has in all, 0 where that does not matter."""

    device: str
    bytes: int
    mapped: Mapping[str, int] = field(default_factory=dict)
    total: int = field(default=0, compare=False, repr=False)

    @property
    def whole(self) -> int:
        """All its bytes, mapped files included."""
        return self.bytes + sum(self.mapped.values())


Placement = tuple[Charge, ...]


@dataclass(frozen=True, slots=True)
class NoFit:
    """Why there is no placement for a need of so many bytes."""

    reason: str
    need: int


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What comes before an instance counts as ready, beside its first token: `prompts` are each generated
    from once, `prefixes` are beginnings of prompts that the engine then keeps. `read_ahead`: its files are
    read into the page cache while it starts."""

    prompts: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    read_ahead: bool = True


@dataclass(frozen=True, slots=True)
class Parallel:
    """How one instance lies on several devices: each layer in `tensor` parts, the layers in `pipeline`
    stages. It takes tensor x pipeline devices, in equal parts, the parts of a stage beside each other."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline


@dataclass(frozen=True, slots=True)
class Batching:
    """What an instance works on in one step: at most so many requests and tokens, for the first of which it
    waits for others so long at most. 0 is the engine's own choice."""

    max_size: int = 0
    max_tokens: int = 0
    max_wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Speculative:
    """A smaller model guesses what the model says next: `draft` is the source of its file, `quantize` the
    type that the store makes of it, or empty; `tokens` are guessed at once, 0 is the engine's own choice."""

    draft: str = ""
    tokens: int = 0
    quantize: str = ""


@dataclass(frozen=True, slots=True)
class Spec:
    """One immutable version of a model. `digest` (hex) names it; `devices` empty means any accelerator.

    `parameters` belong to the engine adapter, `warm_up` to it and the runtime; `quantize` is the type that
    the store makes of the source, or empty. The core never looks inside.
    `sha256` (hex, or empty) is what the file of `source` has to be; `allow_pickle` takes files that run code.
    `pairs` are what it is said to translate; empty: what its files tell.
    """

    model: str
    digest: str
    engine: str
    source: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    capabilities: frozenset[str] = frozenset()
    slots: int = 1
    devices: tuple[str, ...] = ()
    warm_up: WarmUp = WarmUp()
    quantize: str = ""
    sha256: str = ""
    allow_pickle: bool = False
    parallel: Parallel = Parallel()
    batching: Batching = Batching()
    speculative: Speculative = Speculative()
    pairs: Pairs = NO_PAIRS

    @property
    def version(self) -> str:
        """The name of this version, e.g. `qwen@3f9a0c12be47`."""
        return f"{self.model}@{self.digest[:12]}"

    @property
    def on_ram(self) -> bool:
        """Whether it may use host memory alone."""
        return set(self.devices) == {"ram"}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most so many requests in any `per` seconds."""

    requests: int
    per: float


@dataclass(frozen=True, slots=True)
class Policy:
    """What may change while a version stays. Seconds throughout; `drain_cap` None means `request_timeout`.
    `quality`: of several models that translate a pair, the higher one goes first."""

    priority: Priority = Priority.NORMAL
    when_full: WhenFull = WhenFull.EVICT
    keep_alive: float = 600.0
    sleep: bool = True
    sleep_keep_alive: float = 3600.0
    pin: bool = False
    home: bool = False
    preload: bool = False
    min_replicas: int = 0
    max_replicas: int = 1
    patience: float = 8.0
    min_residency: float = 0.0
    drain_cap: float | None = None
    release_cap: float = 10.0
    load_cap: float = 120.0
    max_wait: float = 300.0
    request_timeout: float = 600.0
    first_byte_timeout: float = 120.0
    token_timeout: float = 60.0
    queue_bound: int = 256
    overcommit: int = 0
    placement: Packing = Packing.PACK
    affinity: Affinity = Affinity.NONE
    rate_limit: RateLimit | None = None
    quality: int = 0

    @property
    def drain(self) -> float:
        return self.request_timeout if self.drain_cap is None else self.drain_cap

    @property
    def keeps_files(self) -> bool:
        """Whether it stays in memory, or comes back by itself, so that its files have to stay."""
        return self.pin or self.home or self.min_replicas > 0


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in the operator's own currency: per million tokens in and out, and per load."""

    input: float = 0.0
    output: float = 0.0
    load: float = 0.0


FREE = Price()


class Cause(StrEnum):
    """Why an instance failed to start or left by itself; engine adapters tell it from exit code and log."""

    OUT_OF_MEMORY = "out_of_memory"
    BAD_MODEL = "bad_model"
    PORT_IN_USE = "port_in_use"
    BAD_ARGUMENTS = "bad_arguments"
    NOT_INSTALLED = "not_installed"
    START_DEADLINE = "start_deadline"
    CRASHED = "crashed"
    KILLED = "killed"
    EXITED = "exited"
    LAUNCH = "launch_failed"
    HUNG = "hung"
    DEVICE_LOST = "device_lost"


class OutcomeKind(StrEnum):
    """How one attempt on one lease ended, as far as scheduling cares."""

    DONE = "done"  # an answer, whatever its status: the engine works
    CANCELLED = "cancelled"  # the client left, or its time was over
    UNREACHABLE = "unreachable"  # could not connect, or silent all the time and not known to have stopped
    DIED = "died"  # the connection broke before the answer was whole
    HUNG = "hung"  # first-byte or token deadline passed
    PROTOCOL = "protocol"  # broken framing
    CUT = "cut"  # ended by us at the drain cap or by a kill

    @property
    def is_failure(self) -> bool:
        """True when the outcome speaks against the instance."""
        return self in _FAILURES


_FAILURES = frozenset({OutcomeKind.UNREACHABLE, OutcomeKind.DIED, OutcomeKind.HUNG, OutcomeKind.PROTOCOL})


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens: a Unix socket's `path`, or `host` and `port`.

    `scheme` (`http` or `https`) is that of a server that we did not start; it is asked by its own name, with
    `base` before the path of every request and `headers` beside those of the request. `ca` is the file of the
    certificates that its own is checked against, empty for those that the machine trusts.
    """

    path: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    scheme: str = ""
    base: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold a key
    ca: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        if self.scheme:
            return f"{self.scheme}://{self.authority}{self.base}"
        return self.authority

    @property
    def authority(self) -> str:
        """Host and port as an address has them: without the port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}.get(self.scheme) else f"{host}:{self.port}"
