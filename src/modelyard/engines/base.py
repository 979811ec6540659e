"""The contract of an engine adapter: pure functions from a spec to a command, an estimate, a cause.

Called by the runtime (which does the IO) and by tests with golden files. An adapter never opens a socket,
starts a process or reads a clock. Bundled and third-party adapters register under the entry-point group
`modelyard.engines`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

from modelyard.core.languages import Pairs
from modelyard.core.types import Address, Cause, Need, Packing, Placement, Share, Spec

TRANSLATE = "/translate"
"""The path at which an engine translates: it takes `q` (a list of texts), `source` and `target`, and answers
with `translatedText` (as many), as LibreTranslate does."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A named engine setting (`engines:` in YAML). `program` overrides what the adapter would look for.

    `environment` is added to the scrubbed environment of the engine. `found` maps program names that the
    adapter asks for in `programs` to their absolute path, and those of its `modules` to where they lie,
    filled in by whoever does the IO. `defaults` are in the parameters of each model's spec already: an
    adapter reads those. `exclusive`: no other models go on its `devices`; `placement` is the policy of its
    models where they say nothing.
    """

    name: str
    type: str
    program: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)
    exclusive: bool = False
    placement: Packing | None = None

    def path(self, program: str) -> str:
        """What to run as `program`; empty where there is none."""
        return self.program or self.found.get(program, "")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a version as it lies in the cache: its path, size, digest (sha256 hex, or empty) and the
    header fields that the store read from it (`engines.gguf.facts`; empty for other kinds). `licence` is
    what its publisher or itself says, empty where neither does.

    A model in several files has the path of the first, beside which an engine finds the others by their
    names; size, digest and header are those of all. `parts` is where their bytes lie. A model that is a
    folder has its path; `digest` is over names and digests, and `header` is

    - `kind`: `safetensors`, or `pickle`; also of a safetensors file that stands alone; `ctranslate2` of a
      file that a folder was converted to, with the facts of that folder;
    - `bytes` of its weights;
    - `parameters` and `dtypes` (`{"BF16": 134515008}`): how many elements, in all and by type, as its
      safetensors headers have it; absent where these could not be read yet, and for pickles;
    - `config`: what its config.json says, empty without one. In place of what is long (texts above 200
      characters, lists above 512, mappings above 200 entries, what lies deeper than four) there is None;
    - `translation` of a model that translates: the codes of its `sources` and `targets`."""

    path: Path
    size: int
    digest: str = ""
    header: Mapping[str, object] = field(default_factory=dict)
    licence: str = ""
    parts: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where its bytes lie."""
        return self.parts or (self.path,)


Files = Mapping[str, ModelFile]  # by role: "model", "draft", "lora0", "mmproj", ...


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute. `environment` is added to the launcher's scrubbed base environment. `own_folder`: it
    runs in an empty folder, which nobody else may enter and which is removed when it is gone."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    own_folder: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request to an engine, e.g. the warm-up generation. `name`: which of the spec's fields made it,
    e.g. `warm_up.prompts[0]`."""

    method: str
    path: str
    body: bytes = b""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What a model holds inside a server that is not ours: `count` reads it from the answer to `call`, in
    bytes by device; None when the server does not have it in memory. Raises ValueError."""

    call: Call
    count: Callable[[bytes], Mapping[str, int] | None]


@dataclass(frozen=True, slots=True)
class Attach:
    """No process is started: what answers runs already, at `url` (http or https, its path comes before those
    of requests). `headers` go with every request. `load` and `unload` are requests that have the model in its
    memory, and out of it; none where that is its own affair. `ca` is the file of the certificates that its
    own is checked against, empty for those that the machine trusts. `held` is asked for now and then: a model
    that is not in memory any more has ended."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold a key
    load: tuple[Call, ...] = ()
    unload: tuple[Call, ...] = ()
    ca: str = ""
    held: Held | None = None


@dataclass(frozen=True, slots=True)
class Listening:
    """How a server is reached: whether at a Unix socket, and the path that answers 200 when it can serve (503
    while loading is progress)."""

    unix: bool
    health: str


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its exit code, or the signal that killed it (then `code` is None). Neither: what
    was attached to is gone."""

    code: int | None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine says of its work: how many requests it computes in one step, and of its KV cache the
    part that is in use, of its guesses (speculation) the part that was right. None: it does not say."""

    batch: float | None = None
    kv_use: float | None = None
    accepted: float | None = None


@dataclass(frozen=True, slots=True)
class Rung:
    """A way to sleep, in which the process stays. `shares`: the estimate of its own bytes then, accelerator
    shares in the order of the need's, host memory on `ram`. `sleep` and `wake` are requests in their order,
    each answered with 2xx when it is done; what `warm_up` says follows the wake. `first`: the seconds that
    the first sleep of an instance may take where it has to write something, else 0."""

    name: str
    shares: tuple[Share, ...]
    sleep: tuple[Call, ...]
    wake: tuple[Call, ...]
    first: float = 0.0


@runtime_checkable
class Engine(Protocol):
    """An engine adapter. Stateless; every method is pure.

    `type` is the name in YAML; `programs` are looked up on PATH for it; `unix` says whether it can listen on
    a Unix socket; `health` is the path that answers 200 when it can serve (503 while loading is progress).
    `chat_fields` are the fields of its chat completions beyond OpenAI's that it honours; `trusted` are the
    parameters (by dotted name: `chat_template.file`) that decide what is run on the machine or read of it,
    which only files on its disk may set. `folders`: what it loads may be a folder of files. `modules` are
    Python's that it may need; `verified` is `real` when its contract was held against the real thing,
    `golden` when against written-down commands alone. `parallel` are the fields of `Spec.parallel` that it
    can make more than 1 of; `need` then has as many equal shares on accelerators. `presets` are the settings
    of it that have a name, its parameter `preset`; they are `golden`. `spec_fields` are those of
    `Spec.batching` and `Spec.speculative` that it can be told, each with the parameters that stand for it
    (`batching.max_tokens`: `batch`, `ubatch`). `dead` stands in an error of its server when the process that
    computes behind it has ended; empty where these are one.
    """

    type: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]
    modules: ClassVar[tuple[str, ...]]
    verified: ClassVar[Literal["real", "golden"]]
    presets: ClassVar[frozenset[str]]
    spec_fields: ClassVar[Mapping[str, tuple[str, ...]]]
    unix: ClassVar[bool]
    health: ClassVar[str]
    chat_fields: ClassVar[frozenset[str]]
    trusted: ClassVar[frozenset[str]]
    folders: ClassVar[bool]
    parallel: ClassVar[frozenset[str]]
    dead: ClassVar[bytes]

    def missing(self, profile: Profile) -> str:
        """Which program or package it lacks on this machine, and how to get it; empty when it can be run.
        Asked of a model, `defaults` are all of its parameters."""
        ...

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        """What is wrong with a spec: (path below the model, message) each. Empty when it can be run."""
        ...

    def sources(self, spec: Spec) -> Mapping[str, str]:
        """The files it needs, by role: source strings (`hf://…`, a path). Empty when it needs none."""
        ...

    def need(self, spec: Spec, files: Files) -> Need:
        """The estimate of what one instance takes, in bytes, from the files' headers and the parameters."""
        ...

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command | Attach:
        """What to run so that it serves this spec at `address` on the devices of `placement`, or what runs
        already."""
        ...

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        """Requests in their order, one at least: when each was answered with 2xx, the instance is ready. They
        generate a token (or an embedding) of each prompt of `spec.warm_up`, or of any where it has none, and
        leave its prefixes in the engine's slots. Before these may be some that have it make the model."""
        ...

    def rungs(self, spec: Spec, files: Files) -> Sequence[Rung]:
        """How an instance can sleep instead of being stopped, the one that is back soonest first; none when
        it cannot. It is ordered only while no request runs."""
        ...

    def paths(self, spec: Spec) -> frozenset[str]:
        """The API paths that an instance of this spec answers, e.g. `/v1/chat/completions`, as
        far as the gateway asks for them."""
        ...

    def context(self, spec: Spec, files: Files) -> int | None:
        """The tokens that one request may take, as far as the spec and what is known of its files tell."""
        ...

    def elsewhere(self, spec: Spec) -> bool:
        """Whether what it is sent leaves this machine."""
        ...

    def pairs(self, spec: Spec, files: Files) -> Pairs:
        """What it translates, as far as the spec and its files tell; empty where it does not translate, or
        nobody knows yet."""
        ...

    def languages(self, spec: Spec) -> Call | None:
        """A request whose answer tells what it translates, read by `read_languages`; None when its files or
        its spec do."""
        ...

    def read_languages(self, body: bytes) -> Pairs:
        """What it translates, from the answer to `languages`. Raises ValueError."""
        ...

    def translation(self, spec: Spec, fields: Mapping[str, object]) -> Mapping[str, object]:
        """What it is sent at `/translate` for these fields: `q` (a list of texts), `source`, `target` …"""
        ...

    def conversion(self, spec: Spec) -> str:
        """What its model's folder is converted to before it is used (`store.derived`); empty: nothing."""
        ...

    def usual_slots(self, parameters: Mapping[str, object]) -> int:
        """The slots of a model that does not say how many."""
        ...

    def suited(self, spec: Spec, files: Files) -> Mapping[str, object]:
        """Parameters that a model's file asks for by what it was made for, and that the spec lacks."""
        ...

    def listening(self, spec: Spec) -> Listening:
        """How an instance of this spec is reached: as `unix` and `health` say where that is always so."""
        ...

    def model_name(self, spec: Spec) -> str | None:
        """The name the engine wants in a body's `model`; None when the public name will do."""
        ...

    def busy(self) -> Call | None:
        """A request whose answer tells how many requests it processes now, read by `count_busy`; None when
        it cannot tell."""
        ...

    def count_busy(self, body: bytes) -> int:
        """The number of requests being processed, from the answer to `busy`. Raises ValueError."""
        ...

    def work(self) -> Call | None:
        """A request whose answer tells of its work, read by `read_work`; None when it does not tell."""
        ...

    def read_work(self, body: bytes) -> Work:
        """What the answer to `work` says."""
        ...

    def cause(self, exit: Exit, log_tail: str) -> Cause:
        """Why the process ended, from its exit and the last lines of its log (some hundred). One that does
        not load its model and lives on is asked likewise of what it answered: it may be out of memory."""
        ...

    def telling(self, log_tail: str) -> str:
        """Those of these lines that say most of why it ended, or will not serve."""
        ...

    def refused(self, spec: Spec, status: int) -> tuple[Cause, str] | None:
        """What it means that a request that loads the model, or its first generation, was answered with this
        status, and what to do about it (may be empty); None when that says no more than any refusal."""
        ...
