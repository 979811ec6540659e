"""`/v1/keys`: who may come in, beside the keys of the configuration's file.

Mounted by `gateway/app.py`. A secret is told once, to whoever made the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Body, Path, Request, Response
from pydantic import ConfigDict, Field

from modelyard.config import Key, Scope
from modelyard.config.quantities import PositiveDuration
from modelyard.config.shapes import LONGEST_NAME, NAME, PriorityName
from modelyard.core.types import Priority
from modelyard.errors import (
    KeyNotFound,
    NameTaken,
    OwnedByFile,
    RegistryUnavailable,
    ShuttingDown,
    UnsupportedMediaType,
    WouldLockOut,
)
from modelyard.gateway import views
from modelyard.gateway.reference import refusals
from modelyard.gateway.registry_control import Control
from modelyard.registry.records import KeyRecord

_NO_STORE = {"cache-control": "no-store"}
CHANGING = (RegistryUnavailable, ShuttingDown, UnsupportedMediaType, WouldLockOut)


class Keys(Protocol):
    """Changes take `who` makes them, for the audit log. They raise RegistryUnavailable, and WouldLockOut
    where no key with the scope admin would be left that lasts; then nothing has changed."""

    def all(self) -> Sequence[tuple[Key, KeyRecord | None, str]]:
        """Each key, what the registry has of it (None for one of the file), and why it is left out here,
        empty for one that is not."""
        ...

    async def add(
        self, name: str, scopes: Iterable[Scope], priority: Priority, lasts: float | None, *, who: str
    ) -> tuple[KeyRecord, str]:
        """A new key that lasts for so many seconds (None: until it is removed), and its secret. Raises
        NameTaken."""
        ...

    async def remove(self, name: str, *, who: str) -> None:
        """From now on it opens nothing. Also of one that is left out, under whose name the file's goes on to
        open. Raises KeyNotFound, OwnedByFile."""
        ...


class NewKey(views.Order):
    model_config = ConfigDict(
        strict=False,
        json_schema_extra={"examples": [{"name": "app", "scopes": ["inference"], "expires_in": "30d"}]},
    )
    name: str = Field(pattern=NAME, max_length=LONGEST_NAME, description="For logs and limits.")
    scopes: list[Scope] = Field(
        default=[Scope.INFERENCE],
        min_length=1,
        max_length=len(Scope),
        description="What it opens: the APIs of models, the control surface.",
    )
    max_priority: PriorityName = Field(default="normal", description="The most that X-Priority may ask for.")
    expires_in: PositiveDuration | None = Field(
        default=None, description="How long it opens anything; null: until it is removed."
    )


class KeyView(views.View):
    """A key, without its secret."""

    name: str
    scopes: list[Scope]
    max_priority: PriorityName
    owner: Literal["file", "registry"] = Field(description="Where it is changed.")
    expires: float | None = Field(description="null: never.")
    created: float | None = Field(description="null for a key of a file.")
    created_by: str | None = Field(description="The name of a key; null for one of a file.")
    error: str = Field(description="Why it opens nothing on this server; else empty.")


class KeyList(views.View):
    data: list[KeyView] = Field(description="Those of the file first.")


class MadeKey(KeyView):
    """A new key."""

    key: str = Field(description="The secret, which is told this once.")


def add_keys(router: APIRouter, control: Control, keys: Keys) -> None:
    @router.get("/v1/keys", tags=["keys"])
    async def listed() -> KeyList:
        """The keys, without their secrets."""
        return KeyList(data=[KeyView.model_validate(_shown(*one)) for one in keys.all()])

    @router.post(
        "/v1/keys",
        tags=["keys"],
        status_code=201,
        responses={
            201: {"description": "It opens what it may from now on."},
            **refusals(NameTaken, *CHANGING),
        },
    )
    async def add(request: Request, response: Response, order: Annotated[NewKey, Body()]) -> MadeKey:
        """Make a key. Where there was none, nobody comes in without one from then on."""
        control.check()
        record, secret = await keys.add(
            order.name,
            order.scopes,
            Priority[order.max_priority.upper()],
            order.expires_in,
            who=control.who(request),
        )
        response.headers.update(_NO_STORE)
        return MadeKey.model_validate({**_shown(record.key, record), "key": secret})

    @router.delete(
        "/v1/keys/{name:path}",
        tags=["keys"],
        status_code=204,
        response_class=Response,
        responses={204: {"description": "It is gone."}, **refusals(KeyNotFound, OwnedByFile, *CHANGING)},
    )
    async def remove(request: Request, name: Annotated[str, Path(max_length=300)]) -> Response:
        """Remove a key: it opens nothing from now on, on other servers of one database within 5 seconds
        (on one for which the database is away: as soon as that is back). Answers that are under way are
        finished."""
        control.check()
        await keys.remove(name, who=control.who(request))
        return Response(status_code=204)


def _shown(key: Key, record: KeyRecord | None, error: str = "") -> dict[str, object]:
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "max_priority": key.max_priority.name.lower(),
        "owner": "file" if record is None else "registry",
        "expires": key.expires,
        "created": None if record is None else record.created,
        "created_by": None if record is None else record.created_by,
        "error": error,
    }
