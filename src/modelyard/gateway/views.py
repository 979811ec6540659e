"""The shapes of the control surface's answers: plain pydantic models, which are the API reference at /docs.

Filled by `gateway/snapshot.py`, returned by `gateway/admin.py` and `gateway/listing.py`. Sizes are bytes,
durations seconds, moments seconds since 1970. Nothing here reads any state.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelyard.core.lifecycle import InstanceState
from modelyard.core.types import DeviceKind


class View(BaseModel):
    """An answer: made once, never changed."""

    model_config = ConfigDict(frozen=True)


class ModelState(StrEnum):
    """Where a model stands, seen from a client.

    loaded: an instance is ready. loading: one is on its way. fetching: its files are. failed: the last try
    failed, its files cannot be read, it fits on no device, or it cannot be served here at all. asleep: in
    host memory; the next request wakes it. idle: in no memory; the next request loads it.
    """

    LOADED = "loaded"
    LOADING = "loading"
    FETCHING = "fetching"
    FAILED = "failed"
    ASLEEP = "asleep"
    IDLE = "idle"


# -- health ---------------------------------------------------------------------------------------------


class JournalHealth(View):
    """What the journal lost, and why it is not written now."""

    lost: int = Field(description="Records that never reached the disk.")
    problem: str = Field(description="What the disk says; empty when it is written again.")


class Health(View):
    status: Literal["ok", "degraded"] = Field(
        default="ok", description="degraded: models are served, and something else is wrong."
    )
    config: Literal["refused"] | None = Field(
        default=None,
        description="Only when the file was not taken when it was read last; the status says why.",
    )
    journal: JournalHealth | None = Field(
        default=None, description="Only when records were lost or the disk takes none."
    )
    devices: dict[str, str] | None = Field(
        default=None, description="Only when some are lost or fenced: why, by device."
    )
    state_file: str | None = Field(
        default=None,
        description="Only when the file that names what runs cannot be written: what the disk says.",
    )
    registry: str | None = Field(
        default=None, description="Only when models cannot be registered or changed: why."
    )


class Readiness(View):
    ready: bool
    reason: str = Field(default="", description="Why not, when not.")


# -- models ---------------------------------------------------------------------------------------------


class ModelDetails(View):
    """Our fields of a model, beside OpenAI's."""

    version: str
    state: ModelState
    engine: str
    capabilities: list[str]
    context: int | None = Field(description="Tokens that one request may take; null: the engine's default.")
    slots: int = Field(description="Requests that one instance runs at once.")
    instances: int = Field(description="Instances that are ready.")
    aliases: list[str]


class AnthropicModel(View):
    """A model as Anthropic's API lists it."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str = Field(description="RFC 3339.")


class AnthropicModelList(View):
    """All of them at once."""

    data: list[AnthropicModel]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


class OllamaDetails(View):
    parent_model: str = ""
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(View):
    """A model as Ollama's API lists it; of one in memory the last three fields as well."""

    name: str
    model: str
    modified_at: str
    size: int = Field(description="Bytes of its files; of one in memory: what it takes there.")
    digest: str
    details: OllamaDetails
    size_vram: int | None = Field(default=None, description="What it takes outside of host memory.")
    context_length: int | None = None
    expires_at: str | None = Field(default=None, description="When it leaves if nobody asks for it.")


class OllamaModels(View):
    models: list[OllamaModel]


class OllamaVersion(View):
    version: str = Field(examples=["0.12.6"])
    modelyard: str = Field(description="The version of the server itself.")


class QueueView(View):
    """Who waits for a model."""

    model: str
    waiting: dict[str, int] = Field(description="Requests that wait, by class.")
    oldest: float | None = Field(description="How long the oldest has waited.")
    line: int | None = Field(description="Its place among the models that want an instance, from 1.")
    blocked_by: str = Field(description="What it waits for, when there was no room for it.")
    blocked_for: float | None


class TimingView(View):
    """How long something usually takes, in seconds."""

    median: float
    spread: float = Field(description="The median of the distances from the median.")
    count: int = Field(description="How many durations it was learned from, the last 20 at most.")


class ModelView(View):
    """A model with everything that scheduling knows of it."""

    id: str
    details: ModelDetails
    source: str
    quantize: str = Field(
        description="What the file of `source` is quantized to, and from what, if that was quantized already."
    )
    need: int | None = Field(description="Memory of one instance; null until its files were read.")
    measured: bool = Field(description="False while `need` is a guess of the engine's adapter.")
    keep_alive: float | None = Field(description="How long it stays when idle; null: for ever.")
    pin: bool
    last_used: float | None = Field(description="How long ago a request came for it; null: never.")
    load_time: TimingView | None = Field(
        description="From start to ready, its warm-up included; null until it was loaded here."
    )
    first_token_time: TimingView | None = Field(
        description="From slot to first byte, of the first streamed answer after ready; null: none yet."
    )
    queue: QueueView
    instance_ids: list[str]
    error: str = Field(description="What went wrong last; empty once it was ready again.")
    retry_in: float | None = Field(description="When it may be tried again after an error.")


# -- instances and devices ------------------------------------------------------------------------------


class Holding(View):
    """What one instance holds on one device: by agreement, and as last measured (null: not yet)."""

    device: str
    reserved: int
    observed: int | None
    mapped: int = Field(description="Bytes of files that it shares with others on the device.")


class LeaseView(View):
    request: str
    held: float


class WorkView(View):
    """As its engine says; null where it does not."""

    batch: float | None = Field(description="Requests that it computes in one step.")
    kv_use: float | None = Field(description="The part of its KV cache that is in use, from 0 to 1.")
    accepted: float | None = Field(description="The part of speculated tokens that were right, from 0 to 1.")


class SleepView(View):
    """How an instance sleeps, or is about to; what it holds stands in its `memory`."""

    rung: str = Field(description="What its engine calls this way to sleep.", examples=["level-1"])
    gave_back: dict[str, int] = Field(description="Bytes, by device; empty until it sleeps.")


class InstanceView(View):
    id: str = Field(examples=["chat-1"])
    model: str
    version: str
    state: InstanceState
    generation: int
    slots: int
    leases: list[LeaseView]
    memory: list[Holding]
    started_at: float
    load_seconds: float | None = Field(description="From start to ready; null until it is.")
    idle_for: float | None
    reason: str = Field(description="Why it was started.")
    leaving_for: str = Field(description="The version that gets its memory, when it leaves for one.")
    suspect: bool = Field(
        description="Requests failed on it, or it is silent; it gets none until a probe cleared it."
    )
    sleep: SleepView | None = Field(description="Null where it neither sleeps nor will, nor wakes.")
    work: WorkView | None = Field(default=None, description="Of a moment ago; null where nothing is said.")


class InstanceDetails(InstanceView):
    pids: list[int]
    log: str = Field(description="The file of its output on the server's machine.")


class DeviceUse(View):
    instance: str
    model: str
    reserved: int
    observed: int | None
    pids: list[int] = Field(default_factory=list)


class DeviceView(View):
    """The account of one device. `free` is what a new reservation may take; it is below zero when another
    program took what was promised."""

    id: str = Field(examples=["gpu0"])
    kind: DeviceKind
    name: str
    total: int
    budget: int
    reserve: int
    reserved: int
    observed: int
    foreign: int
    free: int
    closed: str = Field(description="Why nothing is placed on it: lost, or fenced; empty when it is in use.")
    group: str = Field(description="Devices of one group are linked; empty where nobody knows.")
    exclusive: str = Field(description="The engine profile whose models alone go there; empty: any.")
    instances: list[DeviceUse]


# -- what happens ---------------------------------------------------------------------------------------


class EventView(View):
    """Something that happened: a start, a swap with its reason, a failure."""

    at: float
    kind: str
    subject: str
    message: str
    fields: dict[str, str | int | float]


class StoryLine(View):
    at: float
    kind: str = Field(description="The kind of its record in the journal.")
    text: str


class Explanation(View):
    """What the journal tells of one request, or of one model."""

    about: Literal["request", "model"]
    id: str = Field(examples=["r5c1e9a02-17"])
    model: str
    ended: bool = Field(description="False for a request whose end is not in the journal (yet), and a model.")
    kept_since: float = Field(description="The oldest record that the journal still holds.")
    requests: dict[str, int] = Field(description="Of a model: its requests in the journal, by outcome.")
    story: list[StoryLine]


class FetchView(View):
    """How far the fetch of a model's files has come."""

    model: str
    done: int
    total: int | None


class ConfigView(View):
    """The configuration that is served."""

    source: str | None = Field(description="Its file; null when it was read from none.")
    watched: bool = Field(description="A change of the file is noticed.")
    since: float
    problem: str = Field(description="Why the file was not taken when it was read last; empty when it was.")
    refused_at: float | None


class Status(View):
    """Everything in one answer: what `modelyard ps` and the status page show."""

    version: str
    uptime: float
    ready: bool
    reason: str
    shutting_down: bool
    config: ConfigView
    waiting: int
    running: int
    devices: list[DeviceView]
    models: list[ModelView]
    instances: list[InstanceView]
    fetches: list[FetchView]
    events: list[EventView]


# -- changes --------------------------------------------------------------------------------------------


class Order(BaseModel):
    """The body of a change: a field that does not exist is refused rather than overlooked."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LoadOrder(Order):
    wait: bool = Field(default=True, description="Answer when it is ready, or with what stood in the way.")
    evict: bool = Field(default=True, description="Put others out for it; false: only in free memory.")


class FenceOrder(Order):
    reason: str = Field(default="by order", min_length=1, max_length=200, examples=["a new fan"])
    now: bool = Field(default=False, description="Cut what runs there.")


class UnloadOrder(Order):
    now: bool = Field(default=False, description="Cut what runs.")
    wait: bool = Field(default=True, description="Answer when it is gone.")


class Loading(View):
    model: str
    version: str
    instance: str | None = Field(description="The ready instance; null when the load goes on.")
    seconds: float


class Unloading(View):
    model: str
    version: str
    gone: bool = Field(description="Whether these instances are gone; others may have been started since.")
    instances: list[str] = Field(description="Those that were there when the order came.")
    seconds: float


class ErrorDetail(View):
    message: str
    type: str
    code: str
    param: str | None = None


class ErrorView(View):
    """An error, in OpenAI's shape."""

    error: ErrorDetail
