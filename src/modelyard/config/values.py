"""The frozen result of loading: what compose hands to the gateway, the driver and the store.

Sizes are bytes, times seconds. Nothing here holds a key in plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import SecretStr

from modelyard.config.problems import ConfigErrors, Problem
from modelyard.core.languages import Pair
from modelyard.core.types import FREE, Policy, Price, Priority, Spec
from modelyard.engines.base import Profile

T = TypeVar("T")


class Scope(StrEnum):
    """What a key opens: the APIs that models answer, or the control surface."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Key:
    """An access key. `digest` is the sha256 (hex) of the secret, which itself is nowhere kept; `expires` is
    in seconds since the epoch, None for one that lasts."""

    name: str
    digest: str = field(repr=False)
    scopes: frozenset[Scope]
    max_priority: Priority = Priority.NORMAL
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server. `header` is the whole head, its first line included; `header_timeout` counts from
    its first byte (a new connection: from its opening), `body_timeout` and `write_timeout` from the last
    progress. `buffered` is the sum over all connections, of bodies and of what readers have not taken."""

    body: int = 32 * 2**20
    header: int = 64 * 2**10
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 60.0
    connections: int = 1024
    buffered: int = 256 * 2**20


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """Where to listen and what to keep. When `unix` is set, `host` and `port` are not listened on. Port 0
    takes a free one. `drain_grace` is how long running answers may go on after Ctrl-C."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8080
    unix: Path | None = None
    heartbeat_after: float = 10.0
    drain_grace: float = 10.0
    queue_bound: int = 1024
    limits: Limits = field(default_factory=Limits)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_unauthenticated: bool = False


@dataclass(frozen=True, slots=True)
class DeviceSetting:
    """What the operator says about one device. `memory` is the budget of all instances on it, None: all of
    it; `reserve` stays free whoever else uses it, None: the device kind's own default. A declared device is
    taken as it is said to be, an auto one is discovered. `group` empty: as found. `scale`: a declared one is
    made of so many times fewer bytes of host memory. `exclusive` is the engine profile that has it alone."""

    memory: int | None = None
    reserve: int | None = None
    kind: Literal["auto", "declared"] = "auto"
    group: str = ""
    scale: int = 1
    exclusive: str = ""


@dataclass(frozen=True, slots=True)
class S3Setting:
    """An S3 server other than AWS (`endpoint`), and credentials other than those of the environment.
    `path_style` puts the bucket into the path."""

    endpoint: str = ""
    region: str = ""
    path_style: bool = False
    anonymous: bool = False
    access_key_id: str = ""
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class StoreSetting:
    """How files are fetched. `connections` are those for one large file, `bandwidth` is in bytes a second of
    all fetches together (0: unbounded), `allow_private` are hosts, addresses and networks that sources may
    lead to though they are not public. `quota` is in bytes (0: unbounded), `verify_every`
    in seconds (0: never)."""

    connections: int = 4
    bandwidth: int = 0
    allow_private: tuple[str, ...] = ()
    s3: S3Setting = field(default_factory=S3Setting)
    quota: int = 0
    verify_every: float = 0.0


PROMPT = (
    "Translate the user's text from {source} to {target}. "
    "Answer with the translation alone, without quotes or remarks."
)


@dataclass(frozen=True, slots=True)
class Translation:
    """How texts are translated, whichever model does. `pivot`: languages that a translation may go over.
    `llm` is the model that is told to translate by `prompt`, with `{source}` and `{target}` in it; `fallback`
    the model that is kept for when no other can; `fixed` is answered when none can at all. Of these, "" and
    None are none. `cache` is in bytes, 0: none. `preload` are the pairs to have a model ready for; with
    `preload_auto` those asked for most. `spill_after`: seconds behind others after which the next model is
    taken, one elsewhere, too, unless `local_only`."""

    pivot: tuple[str, ...] = ()
    llm: str = ""
    prompt: str = PROMPT
    fallback: str = ""
    fixed: str | None = None
    cache: int = 0
    preload: tuple[Pair, ...] = ()
    preload_auto: bool = False
    max_texts: int = 256
    max_chars: int = 100_000  # of all texts of one request
    local_only: bool = False
    spill_after: float = 10.0


@dataclass(frozen=True, slots=True)
class Model:
    """One model: its version, its policy, the other names that lead to it, and what it costs."""

    spec: Spec
    policy: Policy
    aliases: tuple[str, ...] = ()
    price: Price = FREE

    @property
    def path(self) -> str:
        """Where it stands in the configuration: what `Engine.problems` names lies below it."""
        return f"models.{self.spec.model}"


@dataclass(frozen=True, slots=True)
class Config:
    """A whole, checked configuration. `preload` is in order; `preload_auto` asks the driver to choose by
    past demand. `recheck` is the longest time between two looks at the devices. `keyless`: nobody is asked
    for a key, whichever the registry has. `filled` are the paths whose values, or a part of them, came from
    the environment; `defaults` are those of all policies, as written."""

    server: ServerSetting
    profiles: Mapping[str, Profile] = field(default_factory=dict, repr=False)  # environments hold tokens
    models: tuple[Model, ...] = ()
    devices: Mapping[str, DeviceSetting] = field(default_factory=dict)
    keys: tuple[Key, ...] = ()
    keyless: bool = False
    preload: tuple[str, ...] = ()
    preload_auto: bool = False
    recheck: float = 10.0
    journal: int = 64 * 2**20  # bytes on the disk at most; 0: none is kept
    store: StoreSetting = field(default_factory=StoreSetting)
    translation: Translation = field(default_factory=Translation)
    database_url: str = field(default="", repr=False)  # "": `registry.db` in the data folder
    allow_programs: bool = False  # over the API
    positions: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    filled: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    defaults: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    @property
    def registry_url(self) -> str:
        """Where the registry's database lies; it may hold a password."""
        return self.database_url or f"sqlite:///{self.server.data_dir / 'registry.db'}"

    @property
    def all_devices(self) -> Mapping[str, DeviceSetting]:
        """`devices`, with what engine profiles have for themselves alone. Raises ConfigErrors."""
        settings, problems = dict(self.devices), []
        for name, profile in self.profiles.items():
            if profile.exclusive and not profile.devices:
                problems.append((f"engines.{name}.exclusive", "is of `devices`, and there are none here"))
            for device in profile.devices if profile.exclusive else ():
                setting = settings.get(device, DeviceSetting())
                if setting.exclusive:
                    message = f"{device} is exclusive to the engine profile '{setting.exclusive}' already"
                    problems.append((f"engines.{name}.devices", message))
                settings[device] = replace(setting, exclusive=name)
        if problems:
            raise self.failure(problems)
        return settings

    def failure(self, problems: Iterable[tuple[str, str]]) -> ConfigErrors:
        """The error for problems found after loading, as (path, message), e.g. by an engine adapter."""
        return ConfigErrors(
            Problem(path, message, nearest(self.positions, path) or "") for path, message in problems
        )


def nearest(positions: Mapping[str, T], path: str) -> T | None:
    """What is stored for a path or for the nearest one above it; names may hold dots themselves."""
    while path and path not in positions:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return positions.get(path)
