"""`/v1/models`: which models there are, and registering, changing and removing them.

Mounted by `gateway/app.py`; their versions are in `version_routes`. Nothing is decided here: the catalog
makes the changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from modelyard.config.shapes import is_name
from modelyard.errors import AliasInUse, InvalidRequest, ModelNotFound, NameTaken, SpecRefused, TooManyTasks
from modelyard.gateway import registry_views as shapes
from modelyard.gateway import views
from modelyard.gateway.catalog import Filter, Known
from modelyard.gateway.paths import NameAlone, location
from modelyard.gateway.reference import refusals
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
from modelyard.gateway.tasks_routes import TaskView, view_of
from modelyard.runtime.tasks import Task
from modelyard.wire.json_head import parse

MOST_ROWS = 1000
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_ODD = re.compile(r"[^A-Za-z0-9._:+-]+")

Version = Annotated[str | None, Header(description="Sent by Anthropic's clients; no version differs.")]
Text = Annotated[str, Query(max_length=300)]
Limit = Annotated[int | None, Query(ge=1, le=MOST_ROWS, description="At most so many, by name; else all.")]
After = Annotated[
    str | None, Query(max_length=300, description="Those behind this one (`last_id`), by name.")
]
Pair = Annotated[
    str,
    Query(max_length=70, pattern=r"^[A-Za-z0-9_]+-[A-Za-z0-9_]+$|^$", description="Languages, as `en-de`."),
]
State = Annotated[views.ModelState | None, Query(description="As `modelyard.state` has it.")]


def add_models(router: APIRouter, control: Control) -> None:
    _add_list(router, control)
    _add_register(router, control)
    _add_one(router, control)
    _add_remove(router, control)


def _add_list(router: APIRouter, control: Control) -> None:
    @router.get("/v1/models", tags=["models"])
    async def models(
        name: Annotated[Text, Query(description="A part of the name, in any case.")] = "",
        capability: Annotated[
            Text, Query(description="One that its version has: `chat`, `embedding` …")
        ] = "",
        pair: Pair = "",
        state: State = None,
        limit: Limit = None,
        after: After = None,
        after_id: Annotated[After, Query(description="`after`, as Anthropic's clients say it.")] = None,
        anthropic_version: Version = None,
    ) -> shapes.ServedModels | views.AnthropicModelList:
        """The models that can be asked for, in OpenAI's shape, or in Anthropic's for its clients. Without a
        query: all, in the order of the configuration. With `state=failed` also those that were registered and
        cannot be served here; `error` says why."""
        source, _, target = pair.partition("-")
        unusable = state is views.ModelState.FAILED
        where = Filter(name, capability, (source, target) if pair else None, unusable)
        found, more = _listed(control, where, state, after or after_id, limit)
        ends = (found[0].name, found[-1].name) if found else (None, None)
        snapshot = control.snapshot
        if anthropic_version is not None:
            return views.AnthropicModelList(
                data=[snapshot.listed_for_anthropic(each.entry) for each in found],
                has_more=more,
                first_id=ends[0],
                last_id=ends[1],
            )
        rows = [shapes.served(snapshot, each) for each in found]
        return shapes.ServedModels(data=rows, has_more=more, first_id=ends[0], last_id=ends[1])


def _listed(
    control: Control, where: Filter, state: views.ModelState | None, after: str | None, limit: int | None
) -> tuple[list[Known], bool]:
    """Those that are asked for, and whether there are more."""
    catalog = control.catalog
    if where == Filter() and state is None and after is None and limit is None:
        return [catalog.get(entry.spec.model) for entry in control.names.all()], False
    found: list[Known] = []
    while True:
        wanted = MOST_ROWS if limit is None or state is not None else limit
        page, after = catalog.page(where, after, wanted)
        for known in page:
            if state is not None and control.snapshot.model_state(known.entry) is not state:
                continue
            if len(found) == limit:
                return found, True
            found.append(known)
        if after is None:
            return found, False
        if state is None and len(found) == limit:
            return found, True


def _add_register(router: APIRouter, control: Control) -> None:
    @router.post(
        "/v1/models",
        tags=["models"],
        status_code=201,
        responses={201: {**ETAG, "description": "It is served."}, **refusals(*CHANGING, *READING_FILES)},
    )
    async def register(
        request: Request, response: Response, body: Annotated[shapes.NewModel, Body()]
    ) -> shapes.DescribedModel:
        """Register a model, which is served from now on. Its files are fetched when it is asked for, or by
        `POST /v1/cache/prefetch`."""
        fields = dict(await sent(request, body.rest))
        if not fields.get("engine") and (engine := _engine_of(fields.get("source"))):
            fields["engine"] = engine
        name = _name_of(fields.get("source")) if body.name is None else body.name
        if not is_name(name):
            raise SpecRefused(
                "name: begins with a letter or digit, goes on with those or . _ : / + -, and has a letter or "
                "digit behind each `/`; 200 in all (`@` is for versions).",
                param="name",
            )
        with refusing():
            known = await control.catalog.register(
                name, fields, description=body.description, who=control.who(request)
            )
        response.headers["location"] = location(known.name)
        marked(response, known)
        return shapes.described(control.snapshot, known)


async def sent(request: Request, fields: Mapping[str, object]) -> Mapping[str, object]:
    """The fields, when all of the body is JSON: the framework takes NaN as well. Raises InvalidRequest, and
    SpecRefused for aliases that are no names."""
    parse(await request.body())
    aliases = fields.get("aliases") or []
    if not (isinstance(aliases, str | list) and all(isinstance(one, str) for one in aliases)):
        raise SpecRefused("aliases: is a name, or a list of names.", param="aliases")
    return fields


def _name_of(source: object) -> str:
    """A name for a model of this source: that of its file. Raises SpecRefused."""
    path = re.split("[?#]", source)[0] if isinstance(source, str) else ""
    file = unquote(path).rstrip("/").rpartition("/")[2]
    stem = _PART.sub("", re.sub(r"\.(gguf|safetensors)$", "", file, flags=re.IGNORECASE))
    name = _ODD.sub("-", stem).strip("._:+-")[:200]
    if not name:
        raise SpecRefused("name: is missing, and the source names no file that could tell one.", param="name")
    return name


def _engine_of(source: object) -> str:
    """The engine for a file of this kind; empty where its source does not tell what it is."""
    if not isinstance(source, str):
        return ""
    is_gguf = re.split("[?#]", source)[0].lower().endswith(".gguf")
    return "llamacpp" if is_gguf or source.startswith("ollama://") else ""


def _add_one(router: APIRouter, control: Control) -> None:
    @router.get(
        "/v1/models/{name:path}",
        tags=["models"],
        responses={200: ETAG, **refusals(ModelNotFound)},
    )
    async def model(
        response: Response, name: NameAlone, anthropic_version: Version = None
    ) -> shapes.DescribedModel | views.AnthropicModel:
        """One model: what is served under this name."""
        known = control.catalog.get(name)
        if anthropic_version is not None:
            return control.snapshot.listed_for_anthropic(known.entry)
        marked(response, known)
        return shapes.described(control.snapshot, known)

    @router.patch(
        "/v1/models/{name:path}",
        tags=["models"],
        responses={200: ETAG, **refusals(ModelNotFound, NameTaken, *CHANGING)},
    )
    async def change(
        request: Request,
        response: Response,
        name: NameAlone,
        body: Annotated[shapes.PolicyChange, Body()],
        if_match: Match = None,
    ) -> shapes.DescribedModel:
        """Change its policy, its other names or its description. What decides which process is run is a
        version's, and never changes: add a version instead."""
        fields = await sent(request, body.rest)
        known = control.own(name)
        match = match_of(if_match, known)
        with refusing():
            known = await control.catalog.set_policy(
                known.name, fields, description=body.description, who=control.who(request), match=match
            )
        marked(response, known)
        return shapes.described(control.snapshot, known)


def _add_remove(router: APIRouter, control: Control) -> None:
    @router.delete(
        "/v1/models/{name:path}",
        tags=["models"],
        status_code=204,
        response_class=Response,
        responses={
            202: {"model": TaskView, "description": "It is not served any more; what runs on it finishes."},
            204: {"description": "It is gone."},
            **refusals(ModelNotFound, AliasInUse, TooManyTasks, *CHANGING),
        },
    )
    async def remove(
        request: Request,
        name: NameAlone,
        force: Annotated[bool, Query(description="With its other names.")] = False,
        if_match: Match = None,
    ) -> Response:
        """Remove a model with its versions: who waits for it is refused, what runs on it finishes. Its files
        stay in the cache."""
        control.check()
        known = control.catalog.unserved(name) or control.own(name)
        if name != known.name:
            raise InvalidRequest(f"{name} is another name of {known.name}; name the model.", param="name")
        match = match_of(if_match, known)
        control.tasks.check()
        catalog = control.catalog
        with refusing():
            left = await catalog.remove(known.name, force=force, who=control.who(request), match=match)
        if not left:
            return Response(status_code=204)

        async def drain(task: Task) -> Mapping[str, object]:
            task.step("draining", total=1)
            await catalog.drained(left)
            task.step("gone", done=1)
            return {"model": known.name}

        task = control.tasks.start("remove", known.name, drain)
        found = view_of(task).model_dump(mode="json", exclude_none=True)
        return JSONResponse(found, 202, {"location": f"/v1/tasks/{task.id}"})
