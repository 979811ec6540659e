"""`/v1/engines`: engine profiles, those of the configuration's file and those of the registry.

Mounted by `gateway/app.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Body, Header, Path, Request, Response
from pydantic import Field

from modelyard.config.schema import EngineSection
from modelyard.config.secrets import HIDDEN, plain
from modelyard.config.shapes import is_name
from modelyard.core.types import Packing
from modelyard.engines.base import Profile
from modelyard.errors import (
    EngineInUse,
    EngineNotFound,
    InvalidRequest,
    NameTaken,
    OwnedByFile,
    RegistryUnavailable,
    RestartNeeded,
    RevisionMismatch,
    ShuttingDown,
    SpecRefused,
    UnsupportedMediaType,
)
from modelyard.gateway import views
from modelyard.gateway.reference import refusals
from modelyard.gateway.registry_control import ETAG, Control, Match, revision_of
from modelyard.registry.records import Json, ProfileRecord
from modelyard.wire.json_head import parse

CHANGING = (OwnedByFile, RevisionMismatch, RegistryUnavailable, ShuttingDown, UnsupportedMediaType)


@dataclass(frozen=True, slots=True)
class KnownEngine:
    """An engine profile. `owner` is `engine` for the one of an engine's type that models name without a
    profile, `place` the file and line of a file's; `program` is what would be run, None where nothing was
    found on PATH; `models` counts those that are served with it; `error` is why what the registry has of this
    name is left out here, else empty; `verified` and `missing` are the engine's (`engines.base.Engine`)."""

    profile: Profile
    owner: Literal["file", "registry", "engine"]
    place: str
    program: str | None
    models: int
    record: ProfileRecord | None
    error: str
    verified: Literal["real", "golden"] = "golden"
    missing: str = ""


class Engines(Protocol):
    """Changes take `who` makes them, for the audit log, and `match`: the revision that the caller has seen
    (0: there is none), None to do without. They raise RegistryUnavailable, RevisionMismatch, and OwnedByFile
    for a profile of the file; then nothing has changed."""

    async def all(self) -> Sequence[KnownEngine]:
        """By name."""
        ...

    async def get(self, name: str) -> KnownEngine:
        """Raises EngineNotFound."""
        ...

    def record(self, name: str) -> ProfileRecord | None:
        """What the registry has of this name, also where that is left out here."""
        ...

    async def put(self, name: str, fields: Json, *, who: str, match: int | None) -> KnownEngine:
        """Have the profile say this, the fields of an entry under `engines:`; models that are run with it get
        new versions. Raises SpecRefused for fields that are wrong or that models cannot be run with,
        NameTaken for the name of an engine's type."""
        ...

    async def remove(self, name: str, *, who: str, match: int | None) -> None:
        """Raises EngineNotFound, EngineInUse. Of a name that the file has as well, the registry's goes."""
        ...


class EngineView(views.View):
    """An engine profile, without what may be a secret."""

    name: str
    type: str = Field(description="The engine.")
    owner: Literal["file", "registry", "engine"] = Field(
        description="Where it is changed; `engine`: models name the engine itself, without a profile."
    )
    place: str = Field(description="Where its file has it; else empty.")
    program: str | None = Field(description="What is run; null where nothing was found on PATH.")
    environment: dict[str, str] = Field(description="Variables of its processes, without their values.")
    devices: list[str] = Field(description="Devices that its models may use; none: any.")
    exclusive: bool = Field(description="No other models go on its `devices`.")
    placement: Packing | None = Field(description="`placement` of its models; null: as `defaults` say.")
    defaults: dict[str, Any] = Field(description="Parameters of all its models.")
    models: int = Field(description="How many are served with it.")
    revision: int | None = Field(description="What `ETag` holds; null where the registry does not have it.")
    changed: float | None
    changed_by: str | None = Field(description="The name of a key.")
    error: str = Field(description="Why what the registry has is left out on this server; else empty.")
    verified: Literal["real", "golden"] = Field(
        description="`real`: the engine is tested as the real thing; `golden`: only its command lines are."
    )
    missing: str = Field(description="What the engine lacks on this machine, and how to get it; else empty.")


class EngineList(views.View):
    data: list[EngineView] = Field(description="By name.")


Name = Annotated[str, Path(max_length=300)]
IfNone = Annotated[
    Literal["*"] | None, Header(alias="If-None-Match", description="Only if there is none of this name.")
]


def add_engines(router: APIRouter, control: Control, engines: Engines) -> None:
    @router.get("/v1/engines", tags=["engines"])
    async def listed() -> EngineList:
        """The engine profiles."""
        return EngineList(data=[_view(one) for one in await engines.all()])

    @router.get(
        "/v1/engines/{name:path}", tags=["engines"], responses={200: ETAG, **refusals(EngineNotFound)}
    )
    async def one(response: Response, name: Name) -> EngineView:
        """One engine profile."""
        return _marked(response, await engines.get(name))

    _add_put(router, control, engines)
    _add_remove(router, control, engines)


def _add_put(router: APIRouter, control: Control, engines: Engines) -> None:
    @router.put(
        "/v1/engines/{name:path}",
        tags=["engines"],
        responses={
            200: ETAG,
            201: {**ETAG, "model": EngineView, "description": "It is new."},
            **refusals(NameTaken, SpecRefused, RestartNeeded, *CHANGING),
        },
    )
    async def put(
        request: Request,
        response: Response,
        name: Name,
        section: Annotated[EngineSection, Body(examples=[{"type": "fake", "defaults": {"seed": 1}}])],
        if_match: Match = None,
        if_none_match: IfNone = None,
    ) -> EngineView:
        """Make or change an engine profile of the registry, as a whole. Its models get new versions, as by a
        change of the file."""
        parse(await request.body())
        control.check()
        if not is_name(name):
            raise InvalidRequest(f"name: {name[:200]!r} is not a name.", param="name")
        match = 0 if if_none_match else _match(engines, name, if_match)
        fields = section.model_dump(exclude_unset=True, exclude_none=True)
        known = await engines.put(name, fields, who=control.who(request), match=match)
        response.status_code = 201 if known.record is not None and known.record.revision == 1 else 200
        return _marked(response, known)


def _add_remove(router: APIRouter, control: Control, engines: Engines) -> None:
    @router.delete(
        "/v1/engines/{name:path}",
        tags=["engines"],
        status_code=204,
        response_class=Response,
        responses={
            204: {"description": "It is gone."},
            **refusals(EngineNotFound, EngineInUse, NameTaken, *CHANGING),
        },
    )
    async def remove(request: Request, name: Name, if_match: Match = None) -> Response:
        """Remove an engine profile that no registered model uses."""
        control.check()
        match = _match(engines, name, if_match)
        await engines.remove(name, who=control.who(request), match=match)
        return Response(status_code=204)


def _match(engines: Engines, name: str, sent: str | None) -> int | None:
    """The revision that was seen, None for any. Raises RevisionMismatch, InvalidRequest."""
    if sent is None:
        return None
    record = engines.record(name)
    if record is None:
        raise RevisionMismatch(f"The registry has no engine profile {name!r}.", param="If-Match")
    return revision_of(sent, name, record.revision)


def _view(known: KnownEngine) -> EngineView:
    profile, record = known.profile, known.record
    defaults = plain(dict(profile.defaults))
    assert isinstance(defaults, dict)
    return EngineView(
        name=profile.name,
        type=profile.type,
        owner=known.owner,
        place=known.place,
        program=known.program,
        environment=dict.fromkeys(profile.environment, HIDDEN),
        devices=list(profile.devices),
        exclusive=profile.exclusive,
        placement=profile.placement,
        defaults=defaults,
        models=known.models,
        revision=None if record is None else record.revision,
        changed=None if record is None else record.changed,
        changed_by=None if record is None else record.changed_by,
        error=known.error,
        verified=known.verified,
        missing=known.missing,
    )


def _marked(response: Response, known: KnownEngine) -> EngineView:
    if known.record is not None:
        response.headers["etag"] = f'"{known.record.revision}"'
    return _view(known)
