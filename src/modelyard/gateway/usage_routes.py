"""`/v1/usage`: what was asked of models, and what it cost. Mounted by `gateway/app.py`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field
from pydantic.config import JsonValue

from modelyard.config import Scope
from modelyard.errors import Forbidden, RegistryUnavailable
from modelyard.gateway import views
from modelyard.gateway.reference import refusals
from modelyard.gateway.registry_control import Control, caller_of
from modelyard.registry.records import LARGEST_PAGE
from modelyard.registry.usage import By, UsageBook, UsageRecord, Wanted

LATEST = 2.0**40  # seconds since 1970 that are still a time
Moment = Annotated[float, Field(ge=0, le=LATEST, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=300)]

EXAMPLE: dict[str, JsonValue] = {
    "model": "small",
    "requests": 12,
    "failed": 1,
    "input_tokens": 5210,
    "output_tokens": 1730,
    "seconds": 41.5,
    "loads": 2,
    "cost": 0.0061,
}


class UsageView(views.View):
    """Sums. Of `hour`, `key`, `model` and `version` those are there that were asked by."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})
    hour: float | None = Field(default=None, description="When it began.")
    key: str | None = Field(default=None, description="Its name; empty for what came without, and for loads.")
    model: str | None = None
    version: str | None = Field(default=None, description="As `x-modelyard-version` has it.")
    requests: int = Field(description="That ended, however they did.")
    failed: int = Field(description="Those of them that ended with an error.")
    input_tokens: int = Field(description="As engines counted them.")
    output_tokens: int
    seconds: float = Field(description="That requests held a slot.")
    loads: int
    cost: float = Field(description="By the `price` that held when it happened, in its currency.")


class UsageList(views.View):
    data: list[UsageView] = Field(description="In the order of what they are told apart by.")
    has_more: bool


def add_usage(router: APIRouter, control: Control, book: UsageBook) -> None:
    @router.get(
        "/v1/usage",
        tags=["usage"],
        response_model_exclude_none=True,
        responses=refusals(Forbidden, RegistryUnavailable),
    )
    async def usage(
        request: Request,
        by: Annotated[list[By] | None, Query(description="What rows are told apart by; repeatable.")] = None,
        since: Annotated[Moment | None, Query(description="From the hour of this moment on.")] = None,
        until: Annotated[
            Moment | None, Query(description="Up to the hour that begins at or after it.")
        ] = None,
        model: Annotated[Name | None, Query(description="Of this model alone, by its own name.")] = None,
        key: Annotated[Name | None, Query(description="Of this key alone; empty: of none.")] = None,
        limit: Annotated[int, Query(ge=1, le=LARGEST_PAGE - 1)] = 100,
        offset: Annotated[int, Query(ge=0, le=10_000_000, description="Rows to leave out.")] = 0,
    ) -> UsageList:
        """What was asked of models, hour by hour, and what it cost. A key without the scope admin sees what
        came with it. What happened in the last seconds may not be in it yet; what is older than a year is
        not any more."""
        caller = caller_of(request)
        if Scope.ADMIN not in caller.scopes:
            if key not in (None, caller.name):
                raise Forbidden(f"The key {caller.name!r} sees its own usage alone; {key!r} needs admin.")
            key = caller.name
        wanted = Wanted(tuple(dict.fromkeys(by or ())), since, until, model, key)
        found = await book.sums(wanted, offset=offset, limit=limit + 1)
        return UsageList(data=[_view(one) for one in found[:limit]], has_more=len(found) > limit)


def _view(record: UsageRecord) -> UsageView:
    of: dict[str, Any] = {by.value: value for by, value in record.of.items()}
    return UsageView(**of, **asdict(record.sums))
