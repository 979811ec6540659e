"""The shape of the YAML text: one pydantic model per section, and the JSON Schema made from them.

Used by `build`, which turns what these accept into frozen values; by `modelyard schema`. Only the shape of
each value is decided here, not how values fit together. A field's description ends up in the schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr

from modelyard.config.quantities import (
    Amount,
    Count,
    Duration,
    Few,
    Flag,
    KeepAlive,
    Port,
    PositiveCount,
    PositiveDuration,
    PositiveSize,
    Size,
)
from modelyard.config.shapes import (
    Digest,
    FreeForm,
    Languages,
    Name,
    Names,
    PairNames,
    PriorityName,
    QuantizedType,
    Section,
    Text,
    Texts,
    VariableName,
    VariableValue,
    WarmTexts,
    Word,
    Words,
    as_list,
)
from modelyard.config.translation_schema import TranslationSection
from modelyard.core.types import Affinity, Packing


class LimitsSection(Section):
    body: PositiveSize | None = Field(default=None, description="Largest request body.")
    header: PositiveSize | None = Field(default=None, description="Largest request head.")
    header_timeout: PositiveDuration | None = Field(default=None, description="Time for a request's head.")
    body_timeout: PositiveDuration | None = Field(
        default=None, description="Time without progress in a body, or under 1 KiB a second from its start."
    )
    write_timeout: PositiveDuration | None = Field(
        default=None, description="Time without progress of a reader."
    )
    connections: PositiveCount | None = Field(default=None, description="Open client connections.")
    buffered: PositiveSize | None = Field(default=None, description="Buffered for all connections together.")


class ServerSection(Section):
    host: Text | None = Field(default=None, description="Address to bind; beyond loopback it needs a key.")
    port: Port | None = Field(default=None, description="TCP port; 0 takes a free one.")
    unix: Text | None = Field(
        default=None, description="Listen on this Unix socket instead of host and port."
    )
    data_dir: Text | None = Field(
        default=None, description="Cache, logs and state; default: ~/.local/share/modelyard."
    )
    heartbeat_after: Duration | None = Field(
        default=None, description="Wait before a stream gets its first comment."
    )
    drain_grace: Duration | None = Field(default=None, description="How long answers go on after Ctrl-C.")
    queue_bound: PositiveCount | None = Field(default=None, description="Requests waiting, over all models.")
    limits: LimitsSection = Field(default_factory=LimitsSection)
    allowed_hosts: Texts | None = Field(
        default=None, description="Host headers accepted beside the bound address."
    )
    allowed_origins: Texts | None = Field(default=None, description="Browser origins accepted.")
    allow_unauthenticated: Flag | None = Field(
        default=None, description="Serve beyond loopback without keys."
    )


class EngineSection(Section):
    type: Word = Field(description="The engine: llamacpp, fake, ...")
    program: Text | None = Field(default=None, description="What to run instead of what is found on PATH.")
    environment: dict[VariableName, VariableValue] = Field(
        default_factory=dict, description="Variables of its processes."
    )
    devices: Names = Field(default_factory=list, description="Devices its models may use.")
    exclusive: Flag = Field(default=False, description="No other models go on its `devices`.")
    placement: Packing | None = Field(default=None, description="`placement` of its models.")
    defaults: FreeForm = Field(default_factory=dict, description="Parameters of all its models.")


class PriceSection(Section):
    """What a model costs, in the operator's own currency."""

    input: Amount = Field(default=0, description="For a million tokens that it reads.")
    output: Amount = Field(default=0, description="For a million tokens that it writes.")
    load: Amount = Field(default=0, description="For each time that it is loaded.")


class RateLimitSection(Section):
    """At most so many requests in any span of this length."""

    requests: PositiveCount = Field(description="Requests that are sent in each span.")
    per: PositiveDuration = Field(default=60.0, description="The length of a span.")


class PolicySection(Section):
    """What may change while a version stays."""

    priority: PriorityName | None = Field(default=None, description="The class of its requests.")
    when_full: Literal["evict", "wait", "fail"] | None = Field(
        default=None, description="Put others out, wait until someone leaves, or refuse."
    )
    keep_alive: KeepAlive | None = Field(default=None, description="How long an idle instance stays.")
    sleep: Flag | None = Field(
        default=None, description="Sleep instead of stopping, where the engine can and it pays."
    )
    sleep_keep_alive: KeepAlive | None = Field(
        default=None, description="How long an instance sleeps before it stops."
    )
    pin: Flag | None = Field(default=None, description="Never put out for another model.")
    home: Flag | None = Field(default=None, description="Come back when there is room.")
    preload: Flag | None = Field(default=None, description="Load at start.")
    replicas: PositiveCount | None = Field(
        default=None, description="Instances, no more and no fewer: min_replicas and max_replicas at once."
    )
    min_replicas: Count | None = Field(default=None, description="Instances that are always there.")
    max_replicas: PositiveCount | None = Field(
        default=None, description="Instances under load, in free or idle memory."
    )
    patience: Duration | None = Field(default=None, description="Wait before ready instances are drained.")
    min_residency: Duration | None = Field(default=None, description="Shortest stay once loaded.")
    drain_cap: Duration | None = Field(default=None, description="Longest drain; default is request_timeout.")
    release_cap: PositiveDuration | None = Field(default=None, description="Longest wait for freed memory.")
    load_cap: PositiveDuration | None = Field(default=None, description="Longest start.")
    max_wait: PositiveDuration | None = Field(default=None, description="Longest wait in the queue.")
    request_timeout: PositiveDuration | None = Field(
        default=None, description="Longest answer, its retries together."
    )
    first_byte_timeout: PositiveDuration | None = Field(
        default=None,
        description="Longest silence before a stream begins; in other answers, the time to a probe.",
    )
    token_timeout: PositiveDuration | None = Field(
        default=None, description="Longest silence of an engine within a stream."
    )
    queue_bound: PositiveCount | None = Field(default=None, description="Requests waiting for this model.")
    overcommit: Count | None = Field(default=None, description="Requests granted beyond the slots.")
    rate_limit: RateLimitSection | None = Field(
        default=None, description="Requests that it is given in a span of time; others wait, up to max_wait."
    )
    placement: Packing | None = Field(
        default=None, description="Of the devices with room for it: the fullest (pack), or the emptiest."
    )
    affinity: Affinity | None = Field(
        default=None,
        description="prefix: requests that begin alike go to the same replica, while it has a free slot.",
    )
    quality: Count | None = Field(
        default=None, description="Of several models that translate a pair, the higher one goes first."
    )
    price: PriceSection | None = Field(
        default=None, description="What its use costs, in your own currency; `modelyard usage` adds it up."
    )


class WarmUpSection(Section):
    """What comes before an instance counts as ready."""

    prompts: WarmTexts = Field(
        default_factory=list, description="Each is generated from once, before an instance is ready."
    )
    prefixes: WarmTexts = Field(
        default_factory=list,
        description="System messages that its slots hold, computed already, when it is ready.",
    )
    read_ahead: Flag = Field(
        default=True, description="Read its files into the page cache while it starts, if there is room."
    )


class ParallelSection(Section):
    """One instance on several devices, in equal parts: tensor x pipeline of them."""

    tensor: Few = Field(default=1, description="Parts of each layer, each on a device of its own.")
    pipeline: Few = Field(default=1, description="Stages of layers, each on devices of its own.")


class BatchingSection(Section):
    """What an instance works on in one step; default: what its engine chooses."""

    max_size: PositiveCount | None = Field(default=None, description="Requests in one step.")
    max_tokens: PositiveCount | None = Field(default=None, description="Tokens in one step.")
    max_wait_ms: PositiveCount | None = Field(
        default=None, description="How long the first waits for others, in milliseconds."
    )


class SpeculativeSection(Section):
    """A smaller model guesses what the model says next, which checks the guesses at once."""

    draft: Text = Field(description="The smaller model: one that is configured, or a source.")
    tokens: PositiveCount | None = Field(
        default=None, description="Guessed at once; default: what the engine chooses."
    )


class ModelSection(PolicySection):
    source: Text | None = Field(
        default=None,
        description="hf://, https://, s3://, gs://, ollama://, pypi://, file:// or a path.",
    )
    sha256: Digest | None = Field(
        default=None, description="What the file of `source` has to be, in hex; another one never starts."
    )
    allow_pickle: Flag = Field(
        default=False,
        description="Take PyTorch and pickle files too, which run code when they are read; else GGUF and "
        "safetensors alone.",
    )
    quantize: QuantizedType | None = Field(
        default=None,
        description="Make a GGUF file of this type of the fetched one, once: q8_0, q4_0, q4_k_m, ...",
    )
    engine: Name = Field(description="An engine profile, or an engine's type.")
    slots: PositiveCount | None = Field(
        default=None,
        description="Requests that one instance runs at once. Default: 1; 64 where translations of many are "
        "batched.",
    )
    devices: Names = Field(default_factory=list, description="Devices it may use; default: any.")
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    batching: BatchingSection = Field(default_factory=BatchingSection)
    speculative: SpeculativeSection | None = Field(default=None, description="Speculative decoding.")
    capabilities: Words = Field(default_factory=list, description="Told to clients besides what it serves.")
    languages: Languages = Field(
        default_factory=list,
        description="It translates any of these to any other, or what `pairs` says; default: what its files "
        "tell.",
    )
    pairs: PairNames = Field(
        default_factory=list,
        description="What it translates, as `en-fr`; `*` stands for each of its `languages`.",
    )
    aliases: Names = Field(default_factory=list, description="Other names of this model.")
    parameters: FreeForm = Field(default_factory=dict, description="Settings of the engine.")
    warm_up: WarmUpSection = Field(default_factory=WarmUpSection)


class DeviceSection(Section):
    memory: PositiveSize | None = Field(default=None, description="Budget of all instances on it.")
    reserve: Size | None = Field(default=None, description="What stays free whoever else uses it.")
    kind: Literal["auto", "declared"] = Field(
        default="auto", description="Whether it is found by itself, or taken as it is said to be."
    )
    group: Name | None = Field(
        default=None,
        description="Devices of one group are linked: parts of a model stay together. Default: as found.",
    )
    scale: PositiveCount | None = Field(
        default=None,
        description="Of a declared device: the fake engine takes one byte of host memory for so many.",
    )


class MemorySection(Section):
    recheck: PositiveDuration = Field(default=10.0, description="Longest time between looks at devices.")


class JournalSection(Section):
    enabled: Flag = Field(default=True, description="Keep what happened, for `explain` and its export.")
    bytes: PositiveSize = Field(default=64 * 2**20, description="Most that it takes on the disk.")


class S3Section(Section):
    endpoint: Text | None = Field(
        default=None, description="Address of an S3 server that is not AWS, e.g. http://minio:9000."
    )
    region: Text | None = Field(default=None, description="Default: AWS_REGION, else us-east-1.")
    path_style: Flag | None = Field(
        default=None, description="The bucket in the path, not in the host; default: where `endpoint` is set."
    )
    anonymous: Flag = Field(default=False, description="Ask without credentials, for public buckets.")
    access_key_id: Text | None = Field(
        default=None, description="Default: AWS's environment, its credentials file, or the machine's role."
    )
    secret_access_key: SecretStr | None = Field(default=None, description="Beside `access_key_id`.")
    session_token: SecretStr | None = Field(default=None, description="Of temporary credentials.")


class StoreSection(Section):
    connections: Few = Field(
        default=4, description="Connections that fetch one large file, where its server allows it."
    )
    bandwidth: PositiveSize | None = Field(
        default=None, description="Bytes a second of all fetches together, but those of pypi://."
    )
    allow_private: Texts = Field(
        default_factory=list,
        description="Hosts, addresses and networks that https:// and ollama:// sources may lead to though "
        "they are not public; http:// is taken for these alone.",
    )
    s3: S3Section = Field(default_factory=S3Section)
    quota: PositiveSize | None = Field(
        default=None,
        description="Most that fetched files take; what was not used for longest goes first, and what is in "
        "use never. Default: unbounded, and nothing goes by itself.",
    )
    verify_every: PositiveDuration | None = Field(
        default=None, description="Read all files again this often, one at a time. Default: never."
    )


class RegistrySection(Section):
    database_url: SecretStr | None = Field(
        default=None,
        description="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; "
        "default: `registry.db` in the data folder.",
    )
    allow_programs: Flag = Field(
        default=False,
        description="Whoever has the scope `admin` may say over the API which programs are run on this "
        "machine: `program` and `environment` of engine profiles, `extra_args` of models, and the like.",
    )


class KeySection(Section):
    name: Name = Field(description="For logs and limits.")
    key: SecretStr | None = Field(default=None, description="The secret, e.g. ${MY_KEY}.")
    hash: SecretStr | None = Field(default=None, description="Its sha256 in hex, instead of `key`.")
    scopes: Annotated[list[Literal["inference", "admin"]], BeforeValidator(as_list)] = Field(
        min_length=1, description="What it opens: the APIs of models, the control surface."
    )
    max_priority: PriorityName = Field(default="normal", description="The most that X-Priority may ask for.")


class Root(Section):
    """Modelyard's configuration."""

    include: Texts = Field(
        default_factory=list,
        description="Files or globs, relative to this file; a glob skips `.hidden` files.",
    )
    server: ServerSection = Field(default_factory=ServerSection)
    engines: dict[Name, EngineSection] = Field(default_factory=dict)
    models: dict[Name, ModelSection] = Field(default_factory=dict)
    defaults: PolicySection = Field(default_factory=PolicySection)
    devices: dict[Name, DeviceSection] = Field(default_factory=dict)
    memory: MemorySection = Field(default_factory=MemorySection)
    journal: JournalSection = Field(default_factory=JournalSection)
    store: StoreSection = Field(default_factory=StoreSection)
    translation: TranslationSection = Field(default_factory=TranslationSection)
    registry: RegistrySection = Field(default_factory=RegistrySection)
    preload: Annotated[list[Name], BeforeValidator(as_list)] = Field(
        default_factory=list, description="Models to load at start, in order; or `auto`."
    )
    keys: list[KeySection] = Field(default_factory=list)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration file, for editors and `modelyard schema`."""
    schema = Root.model_json_schema()
    for definition in [schema, *schema.get("$defs", {}).values()]:
        # The docstrings of these classes speak to readers of the code.
        definition.pop("description", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Modelyard configuration",
    }
