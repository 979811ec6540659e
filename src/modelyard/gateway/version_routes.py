"""Versions of models: adding, comparing, promoting and naming them; policies that were; who changed what.

Mounted by `gateway/app.py`. Promoting takes as long as a load: it is a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from modelyard.errors import (
    ModelNotFound,
    NameTaken,
    NoRoomBeside,
    OwnedByFile,
    RegistryUnavailable,
    SpecRefused,
    TaskCancelled,
    TooManyTasks,
    VersionNotFound,
)
from modelyard.gateway import registry_views as shapes
from modelyard.gateway.catalog import Known
from modelyard.gateway.paths import NameBefore
from modelyard.gateway.reference import STARTING, refusals
from modelyard.gateway.registry_control import (
    CHANGING,
    ETAG,
    READING_FILES,
    Control,
    Match,
    marked,
    match_of,
    refusing,
)
from modelyard.gateway.registry_routes import sent
from modelyard.gateway.tasks_routes import TaskView, view_of
from modelyard.registry.records import VersionRecord
from modelyard.runtime.tasks import Task, Work

MOST_ROWS = 500
FOUND = (ModelNotFound, VersionNotFound)

Wait = Annotated[bool, Query(description="Answer when it is done, or with what stood in the way.")]
Tag = Annotated[str, Path(max_length=64)]
Number = Annotated[int, Query(ge=1, le=2**31 - 1)]


def add_versions(router: APIRouter, control: Control) -> None:
    _add_reading(router, control)
    _add_new(router, control)
    _add_promote(router, control)
    _add_tags(router, control)
    _add_history(router, control)


def _add_reading(router: APIRouter, control: Control) -> None:
    @router.get(
        "/v1/models/{name:path}/versions",
        tags=["versions"],
        responses=refusals(ModelNotFound, OwnedByFile),
    )
    async def versions(name: NameBefore) -> shapes.VersionList:
        """The versions of a registered model."""
        known = control.own(name, change=False)
        records = control.catalog.versions(known.name)
        return shapes.VersionList(data=[shapes.version(known, each) for each in records])

    @router.get(
        "/v1/models/{name:path}/versions/{number:number}",
        tags=["versions"],
        responses=refusals(*FOUND, OwnedByFile),
    )
    async def version(
        name: NameBefore, number: Annotated[int, Path(ge=1, le=2**31 - 1)]
    ) -> shapes.VersionDetails:
        """A version of a registered model, with its files."""
        known, catalog = control.own(name, change=False), control.catalog
        found = _found(control, known, number)
        return shapes.version_details(known, found, await catalog.artifacts(known.name, number))

    @router.get(
        "/v1/models/{name:path}/compare",
        tags=["versions"],
        responses=refusals(*FOUND, OwnedByFile, SpecRefused),
    )
    async def compare(
        name: NameBefore,
        one: Annotated[Number, Query(alias="from")],
        other: Annotated[Number, Query(alias="to")],
    ) -> shapes.Comparison:
        """What differs between two versions of a model."""
        known = control.own(name, change=False)
        return shapes.compared(known.name, one, other, control.catalog.compare(known.name, one, other))


def _found(control: Control, known: Known, number: int) -> VersionRecord:
    """Raises VersionNotFound."""
    for record in control.catalog.versions(known.name):
        if record.number == number:
            return record
    raise VersionNotFound(f"{known.name} has no version {number}.", param="version")


def _add_new(router: APIRouter, control: Control) -> None:
    @router.post(
        "/v1/models/{name:path}/versions",
        tags=["versions"],
        status_code=201,
        responses={
            200: {"model": shapes.VersionView, "description": "The model has this version already."},
            201: {**ETAG, "description": "It is kept; promote it to have it served."},
            **refusals(ModelNotFound, *CHANGING, *READING_FILES),
        },
    )
    async def add(
        request: Request,
        response: Response,
        name: NameBefore,
        body: Annotated[shapes.NewVersion, Body()],
        if_match: Match = None,
    ) -> shapes.VersionView:
        """Add a version, all of whose fields are given. The current one stays current."""
        fields = await sent(request, body.rest)
        known = control.own(name)
        match = match_of(if_match, known)
        with refusing():
            record, new = await control.catalog.add_version(
                known.name, fields, who=control.who(request), match=match
            )
        response.status_code = 201 if new else 200
        known = control.catalog.get(known.name)
        marked(response, known)
        return shapes.version(known, record)


PROMOTED = {
    200: {"model": shapes.DescribedModel, "description": "It is the current one (`wait=true`)."},
    202: {"model": TaskView, "description": "The task that does it."},
    **refusals(*FOUND, NoRoomBeside, TooManyTasks, TaskCancelled, *STARTING, *CHANGING),
}


def _add_promote(router: APIRouter, control: Control) -> None:
    async def switch(
        request: Request, known: Known, number: int, swap: bool, wait: bool, if_match: str | None, kind: str
    ) -> Response:
        """What can be refused at once is; the rest is a task."""
        catalog, who, match = control.catalog, control.who(request), match_of(if_match, known)
        _found(control, known, number)

        async def work(task: Task) -> Mapping[str, object]:
            with refusing():
                now = await catalog.promote(
                    known.name, number, swap=swap, who=who, match=match, step=task.step
                )
            return shapes.described(control.snapshot, now).model_dump(mode="json")

        return await started(control, kind, f"{known.name}@{number}", work, wait=wait)

    route: Any = {"tags": ["versions"], "status_code": 202, "response_model": TaskView, "responses": PROMOTED}

    @router.post("/v1/models/{name:path}/promote", **route)
    async def promote(
        request: Request,
        name: NameBefore,
        order: Annotated[shapes.Promotion, Body()],
        wait: Wait = False,
        if_match: Match = None,
    ) -> Response:
        """Make a version the current one. It is loaded and warmed up beside the one that serves; then
        requests lead to it, and the other one drains."""
        return await switch(request, control.own(name), order.version, order.swap, wait, if_match, "promote")

    @router.post("/v1/models/{name:path}/rollback", **route)
    async def rollback(
        request: Request,
        name: NameBefore,
        order: Annotated[shapes.Rollback | None, Body()] = None,
        wait: Wait = False,
        if_match: Match = None,
    ) -> Response:
        """Make the version the current one that was so before, in the way of `promote`."""
        known, order = control.own(name), order or shapes.Rollback()
        number = order.version or (known.record.previous if known.record is not None else None)
        if number is None:
            raise VersionNotFound(f"{known.name} has had no other version before this one.", param="version")
        return await switch(request, known, number, order.swap, wait, if_match, "rollback")


async def started(control: Control, kind: str, subject: str, work: Work, *, wait: bool) -> Response:
    """A task of this work: where to look, or, if somebody waits for it, what came of it."""
    task = control.tasks.start(kind, subject, work)
    where = {"location": f"/v1/tasks/{task.id}"}
    if wait:
        return JSONResponse(dict(await task.finished()), 200, where)
    return JSONResponse(view_of(task).model_dump(mode="json", exclude_none=True), 202, where)


def _add_tags(router: APIRouter, control: Control) -> None:
    async def change(
        request: Request, response: Response, name: str, tag: str, number: int | None, sent_match: str | None
    ) -> shapes.DescribedModel:
        known = control.own(name)
        match = match_of(sent_match, known)
        known = await control.catalog.tag(known.name, tag, number, who=control.who(request), match=match)
        marked(response, known)
        return shapes.described(control.snapshot, known)

    @router.put(
        "/v1/models/{name:path}/tags/{tag}",
        tags=["versions"],
        responses={200: ETAG, **refusals(*FOUND, NameTaken, *CHANGING)},
    )
    async def tag(
        request: Request,
        response: Response,
        name: NameBefore,
        tag: Tag,
        order: Annotated[shapes.Tagging, Body()],
        if_match: Match = None,
    ) -> shapes.DescribedModel:
        """Have the tag name this version, whichever it named before."""
        return await change(request, response, name, tag, order.version, if_match)

    @router.delete(
        "/v1/models/{name:path}/tags/{tag}",
        tags=["versions"],
        responses={200: ETAG, **refusals(*FOUND, *CHANGING)},
    )
    async def untag(
        request: Request, response: Response, name: NameBefore, tag: Tag, if_match: Match = None
    ) -> shapes.DescribedModel:
        """Take a tag away."""
        return await change(request, response, name, tag, None, if_match)


def _add_history(router: APIRouter, control: Control) -> None:
    @router.get(
        "/v1/models/{name:path}/policies",
        tags=["models"],
        responses=refusals(ModelNotFound, OwnedByFile, RegistryUnavailable),
    )
    async def policies(
        name: NameBefore,
        before: Annotated[
            int | None, Query(ge=1, le=2**31 - 1, description="Those older than the one of this number.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
    ) -> shapes.PolicyList:
        """The policies that a registered model has had."""
        known = control.own(name, change=False)
        records = await control.catalog.policies(known.name, before=before, limit=limit + 1)
        rows = [shapes.policy(each) for each in records[:limit]]
        return shapes.PolicyList(data=rows, has_more=len(records) > limit)

    @router.get("/v1/audit", tags=["registry"], responses=refusals(RegistryUnavailable))
    async def audit(
        model: Annotated[
            str | None, Query(max_length=300, description="By the name that it has or had.")
        ] = None,
        before: Annotated[
            int | None, Query(ge=1, le=2**63 - 1, description="Changes older than the one with this id.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
    ) -> shapes.AuditList:
        """Who changed what, when, from what to what."""
        records = await control.catalog.audit(model, before=before, limit=limit + 1)
        rows = [shapes.audited(each) for each in records[:limit]]
        return shapes.AuditList(data=rows, has_more=len(records) > limit)
