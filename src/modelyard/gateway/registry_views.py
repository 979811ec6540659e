"""The shapes of models as data: what is asked for, and what is answered.

Used by `registry_routes` and `version_routes`. Secrets of a spec are hidden; a file's model shows where it
stands instead of its spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from modelyard.config.difference import Value
from modelyard.config.schema import ModelSection, PolicySection
from modelyard.config.secrets import plain, shown
from modelyard.config.shapes import Section
from modelyard.gateway import views
from modelyard.gateway.capabilities import known_of
from modelyard.gateway.catalog import Known
from modelyard.gateway.config import FieldChange
from modelyard.gateway.snapshot import Snapshot
from modelyard.registry.checks import without_secrets
from modelyard.registry.records import (
    Artifact,
    AuditRecord,
    FileFacts,
    PolicyRecord,
    VersionRecord,
    VersionState,
)

MOST_NAMES = 100
POLICY = frozenset({*PolicySection.model_fields, "aliases"})
"""Fields of a model that may change while its version stays."""
VERSION = frozenset(ModelSection.model_fields) - POLICY
Number = Annotated[int, Field(ge=1, le=2**31 - 1, description="Of a version.")]


# -- what is asked for ----------------------------------------------------------------------------------


class _Fields(views.Order):
    """Fields in the schema of an entry under `models:`; they are checked as those of a file are."""

    model_config = ConfigDict(extra="allow")

    @property
    def rest(self) -> dict[str, Any]:
        """Those of the entry."""
        return dict(self.model_extra or {})


def _with(fields: Iterable[str], section: type[Section]) -> classmethod[Any, Any, JsonSchemaValue]:
    """Describes these fields of the file's schema beside a shape's own."""

    def described(cls: type[_Fields], schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        own = handler.resolve_ref_schema(handler(schema))
        entry = handler.resolve_ref_schema(handler(section.__pydantic_core_schema__))
        named = {name: entry["properties"][name] for name in section.model_fields if name in fields}
        own["properties"] = {**own.get("properties", {}), **named}
        own["additionalProperties"] = False
        return own

    return classmethod(described)


class NewModel(_Fields):
    """A model: fields of an entry under `models:`, or just a `source`, whose file tells the rest."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "small", "engine": "fake", "parameters": {"seed": 1}}]}
    )
    name: str | None = Field(default=None, max_length=200, description="Default: that of the source's file.")
    description: str = Field(default="", max_length=8192, description="For people.")

    __get_pydantic_json_schema__ = _with(ModelSection.model_fields, ModelSection)


class NewVersion(_Fields):
    """What decides which process is run; the rest is the model's policy."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"engine": "fake", "parameters": {"seed": 2}}]})

    __get_pydantic_json_schema__ = _with(VERSION, ModelSection)


class PolicyChange(_Fields):
    """What may change while a version stays; a field that is null goes back to its default."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"keep_alive": "5m", "aliases": ["default"]}]})
    description: str | None = Field(default=None, max_length=8192, description="For people; null: as it was.")

    __get_pydantic_json_schema__ = _with(POLICY, ModelSection)


class Promotion(views.Order):
    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 2}]})
    version: Number
    swap: bool = Field(
        default=False, description="The one that serves may leave before, where both do not fit."
    )


class Rollback(views.Order):
    model_config = ConfigDict(json_schema_extra={"examples": [{}]})
    version: Number | None = Field(default=None, description="null: the one that was current before.")
    swap: bool = Field(
        default=False, description="The one that serves may leave before, where both do not fit."
    )


class Tagging(views.Order):
    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 2}]})
    version: Number


class Prefetch(views.Order):
    model_config = ConfigDict(json_schema_extra={"examples": [{"models": ["small"]}]})
    models: list[Annotated[str, Field(min_length=1, max_length=300)]] = Field(
        min_length=1, max_length=MOST_NAMES, description="Names of models, versions or tags."
    )


# -- what is answered -----------------------------------------------------------------------------------


class Registered(views.View):
    """What the registry has of a model."""

    revision: int = Field(description="Counts changes: what `ETag` holds, and `If-Match` is compared with.")
    number: int = Field(description="Of this version.")
    current: int = Field(description="The version that the model's name leads to.")
    previous: int | None = Field(description="The version that was current before.")
    tags: dict[str, int] = Field(description="The version that each tag names.")
    description: str
    changed: float


class PriceView(views.View):
    """What its use costs."""

    input: float = Field(description="For a million tokens.")
    output: float = Field(description="For a million tokens.")
    load: float = Field(description="For each load.")


class FilesView(views.View):
    """What a version's files tell, also before they are here, as far as their sources show it."""

    size: int | None = Field(description="Bytes of all of them.")
    architecture: str = Field(description="This and the rest: as the header of the model's own file has it.")
    quantization: str
    trained_context: int | None = Field(description="Tokens that it was made for.")
    licence: str


class ServedDetails(views.ModelDetails):
    """Our fields of a model, beside OpenAI's."""

    owner: Literal["file", "registry"] = Field(description="Where it is changed.")
    price: PriceView = Field(description="In the operator's own currency; 0 where none is set.")
    registered: Registered | None = Field(description="null for a model of a file.")
    error: str = Field(description="What went wrong last, or why it cannot be served here; else empty.")
    files: FilesView | None = Field(description="null while nothing is known of them.")


class ServedModel(views.View):
    """A model as OpenAI's API lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "modelyard"
    modelyard: ServedDetails


class ServedModels(views.View):
    object: Literal["list"] = "list"
    data: list[ServedModel]
    first_id: str | None
    last_id: str | None = Field(description="What to give as `after` for those behind it.")
    has_more: bool


class DescribedModel(ServedModel):
    """A model, or one of its versions, with policy and spec."""

    place: str = Field(description="Where its file has it; empty for one of the registry.")
    policy: dict[str, Any] = Field(description="As it holds, defaults included.")
    spec: dict[str, Any] | None = Field(description="Without what may be a secret; null for one of a file.")


class VersionCapabilities(views.View):
    features: list[str]
    context: int | None = Field(description="Tokens that one request may take.")
    languages: list[str] = Field(description="It translates any of these to any other.")
    pairs: list[tuple[str, str]] = Field(description="It translates these: source, target.")
    files: FilesView | None


class VersionView(views.View):
    """A version. All but its state and what its files told never changes."""

    model: str
    number: int
    version: str = Field(description="Its name, as `x-modelyard-version` has it.")
    digest: str
    current: bool
    tags: list[str]
    state: VersionState = Field(description="What is known of its files.")
    detail: str = Field(description="Why it failed, if it did.")
    spec: dict[str, Any] = Field(description="Without what may be a secret.")
    capabilities: VersionCapabilities
    created: float
    created_by: str = Field(description="The name of a key.")


class ArtifactView(views.View):
    """A file of a version."""

    path: str = Field(description="Its name within the version.")
    source: str = Field(description="Without what may be a secret.")
    size: int
    sha256: str = Field(description="Empty while it is not known.")
    licence: str = Field(description="Empty where nobody says.")
    made_from: str | None = Field(description="The sha256 of the file that it was quantized from.")


class VersionDetails(VersionView):
    """A version with its files."""

    artifacts: list[ArtifactView] | None = Field(
        description="Empty until they were here; null while the registry's database is away."
    )


class VersionList(views.View):
    data: list[VersionView] = Field(description="The oldest first.")


class PolicyView(views.View):
    """A policy that a model had."""

    number: int = Field(description="Counts them.")
    policy: dict[str, Any] = Field(description="As it was given, without defaults.")
    created: float
    created_by: str = Field(description="The name of a key.")


class PolicyList(views.View):
    data: list[PolicyView] = Field(description="The newest first; that one holds.")
    has_more: bool


class Comparison(views.View):
    model: str
    one: int = Field(serialization_alias="from")
    other: int = Field(serialization_alias="to")
    fields: list[FieldChange]


class AuditView(views.View):
    """A change."""

    id: int
    at: float
    who: str = Field(description="The name of a key.")
    action: str
    model: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditList(views.View):
    data: list[AuditView] = Field(description="The newest first.")
    has_more: bool


# -- from records ---------------------------------------------------------------------------------------


def served(snapshot: Snapshot, known: Known) -> ServedModel:
    return ServedModel(**_served(snapshot, known))


def described(snapshot: Snapshot, known: Known) -> DescribedModel:
    version = known.version
    return DescribedModel(
        **_served(snapshot, known),
        place=known.place,
        policy=_json(asdict(known.entry.policy)),
        spec=None if version is None else without_secrets(version.spec),
    )


def _served(snapshot: Snapshot, known: Known) -> dict[str, Any]:
    can, record = known_of(known), known.record
    registered = None
    if record is not None and known.version is not None:
        registered = Registered(
            revision=record.revision,
            number=known.version.number,
            current=record.current.number,
            previous=record.previous,
            tags=dict(record.tags),
            description=record.description,
            changed=record.changed,
        )
    details = ServedDetails(
        **dict(snapshot.model_details(known.entry, can)),
        owner="file" if record is None else "registry",
        price=PriceView(**asdict(known.entry.price)),
        registered=registered,
        error=snapshot.error(known.entry),
        files=_files(can.files),
    )
    created = snapshot.created if record is None else int(record.created)
    return {"id": known.name, "created": created, "modelyard": details}


def version(known: Known, record: VersionRecord) -> VersionView:
    return VersionView(**_version(known, record))


def version_details(
    known: Known, record: VersionRecord, artifacts: Sequence[Artifact] | None
) -> VersionDetails:
    files = None if artifacts is None else [_artifact(each) for each in artifacts]
    return VersionDetails(**_version(known, record), artifacts=files)


def _artifact(file: Artifact) -> ArtifactView:
    return ArtifactView(**{**asdict(file), "source": shown(file.source)})


def _version(known: Known, record: VersionRecord) -> dict[str, Any]:
    model, can = known.record, record.capabilities
    assert model is not None
    return {
        "model": record.model,
        "number": record.number,
        "version": f"{record.model}@{record.digest[:12]}",
        "digest": record.digest,
        "current": record.number == model.current.number,
        "tags": sorted(tag for tag, number in model.tags.items() if number == record.number),
        "state": record.state,
        "detail": record.detail,
        "spec": without_secrets(record.spec),
        "capabilities": VersionCapabilities(
            features=sorted(can.features),
            context=can.context,
            languages=list(can.languages),
            pairs=list(can.pairs),
            files=_files(can.files),
        ),
        "created": record.created,
        "created_by": record.created_by,
    }


def _files(facts: FileFacts | None) -> FilesView | None:
    return None if facts is None else FilesView(**asdict(facts))


def compared(model: str, one: int, other: int, fields: Sequence[Value]) -> Comparison:
    changes = [FieldChange(path=each.path, before=each.before, after=each.after) for each in fields]
    return Comparison(model=model, one=one, other=other, fields=changes)


def policy(record: PolicyRecord) -> PolicyView:
    return PolicyView(**{**asdict(record), "policy": _json(record.policy)})


def audited(record: AuditRecord) -> AuditView:
    return AuditView(
        id=record.id,
        at=record.at,
        who=record.who,
        action=record.action,
        model=record.model,
        before=None if record.before is None else _json(record.before),
        after=None if record.after is None else _json(record.after),
    )


def _json(value: object) -> dict[str, Any]:
    found = plain(value)
    assert isinstance(found, dict)
    return found
