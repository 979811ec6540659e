"""What the registry hands out and takes: frozen values, without a database behind them.

Times are seconds since the epoch. A spec and a policy are JSON objects in the schema of a `models:` entry of
the configuration, which the registry keeps and does not interpret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from modelyard.config import Key

LARGEST_PAGE = 1000  # of what is read in pages

Json = Mapping[str, object]


class VersionState(StrEnum):
    """What is known of a version's files. registered: nothing yet; verified: they were here and are the right
    ones; failed: they cannot be had or used, `detail` says why."""

    REGISTERED = "registered"
    VERIFIED = "verified"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a version's files tell: the bytes of all of them; of the model's own, what its header says. None
    and "" are what they do not tell, or nobody knows yet; `trained_context` is in tokens."""

    size: int | None = None
    architecture: str = ""
    quantization: str = ""
    trained_context: int | None = None
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a version can do. `features` are words (chat, completion, embedding, rerank, translation, vision,
    tools, json); `context` is in tokens. What it translates are `pairs` as (source, target), and any two of
    `languages`. `files` is None where nothing is known of them."""

    features: frozenset[str] = frozenset()
    context: int | None = None
    languages: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    files: FileFacts | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a version: `path` within it, where it came from, its bytes and its sha256 (hex; "" while it
    is not known). `made_from` is the sha256 of the file that it was quantized from."""

    path: str
    source: str
    size: int
    sha256: str = ""
    licence: str = ""
    made_from: str | None = None


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version that is to be kept. `digest` (hex) names its spec; who computes it decides what is in it.
    `profiled`: its `engine` is a profile of the registry, which has to be there still."""

    spec: Json
    digest: str
    capabilities: Capabilities = field(default_factory=Capabilities)
    profiled: bool = False


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of a model. Spec and digest never change; state, detail and capabilities are what was found
    out since."""

    model: str
    number: int
    digest: str
    spec: Json = field(repr=False)  # parameters may hold secrets
    state: VersionState
    detail: str
    capabilities: Capabilities
    created: float
    created_by: str


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model as it is now. `revision` counts the changes made by people; `current` is the version that is
    served, `previous` the number of the one before it. `tags` leads from a tag to a version's number."""

    name: str
    revision: int
    owner: str
    description: str
    current: VersionRecord
    previous: int | None
    policy: Json
    aliases: tuple[str, ...]
    tags: Mapping[str, int]
    created: float
    changed: float


@dataclass(frozen=True, slots=True)
class Added:
    """What came of adding a version: not `created` when the model had one with this digest already."""

    model: ModelRecord
    version: VersionRecord
    created: bool


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """One policy that a model had; `number` counts from 1."""

    number: int
    policy: Json
    created: float
    created_by: str


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change: who made it, when, and what it was before and after, without what may be a secret."""

    id: int
    at: float
    who: str
    action: str
    model: str
    before: Json | None
    after: Json | None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key of the API; `created_by` is the name of another one."""

    key: Key
    created: float
    created_by: str


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """An engine profile. `revision` counts its changes, from 1."""

    name: str
    revision: int
    profile: Json = field(repr=False)  # its environment may hold secrets
    created: float
    changed: float
    changed_by: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that serving needs, as of one moment. `stamp` grows with each change, whichever server made
    it. `versions` are those of each model, by number; keys and profiles are by name."""

    stamp: int
    models: tuple[ModelRecord, ...]
    versions: Mapping[str, tuple[VersionRecord, ...]]
    keys: Mapping[str, KeyRecord]
    profiles: Mapping[str, ProfileRecord]
