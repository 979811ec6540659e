"""`POST /v1/models/{name}/quantize`: a version whose file is made of that of another, ready to be promoted.

Mounted by `gateway/app.py`. Making a file takes as long as it is large: it is a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from pydantic import ConfigDict, Field

from modelyard.errors import ModelNotFound, TaskCancelled, TooManyTasks
from modelyard.gateway import registry_views as shapes
from modelyard.gateway import views
from modelyard.gateway.paths import NameBefore
from modelyard.gateway.reference import refusals
from modelyard.gateway.registry_control import CHANGING, READING_FILES, Control, Match, match_of, refusing
from modelyard.gateway.tasks_routes import TaskView
from modelyard.gateway.version_routes import Wait, started
from modelyard.runtime.entries import Progress
from modelyard.runtime.tasks import Task


class Quantization(views.Order):
    model_config = ConfigDict(json_schema_extra={"examples": [{"type": "q8_0"}]})
    type: Annotated[str, Field(max_length=32)] = Field(
        description="As in `quantize:` of a model: q8_0, q4_0, …"
    )


def add_quantize(router: APIRouter, control: Control) -> None:
    @router.post(
        "/v1/models/{name:path}/quantize",
        tags=["versions"],
        status_code=202,
        response_model=TaskView,
        responses={
            200: {
                "model": shapes.VersionView,
                "description": "The version; its file is made (`wait=true`).",
            },
            202: {"model": TaskView, "description": "The task that does it."},
            **refusals(ModelNotFound, TooManyTasks, TaskCancelled, *CHANGING, *READING_FILES),
        },
    )
    async def quantize(
        request: Request,
        name: NameBefore,
        order: Annotated[Quantization, Body()],
        wait: Wait = False,
        if_match: Match = None,
    ) -> Response:
        """Add a version that is the current one with its file quantized, and make that file. The current one
        stays current."""
        known, catalog = control.own(name), control.catalog
        match, who = match_of(if_match, known), control.who(request)
        assert known.record is not None
        fields = {**known.record.current.spec, "quantize": order.type}
        control.tasks.check()
        with refusing():
            record, _ = await catalog.add_version(known.name, fields, who=who, match=match)

        async def work(task: Task) -> Mapping[str, object]:
            def told(progress: Progress) -> None:
                task.step(done=progress.done, total=progress.total)

            task.step("making its file")
            entry = await control.names.reach(f"{known.name}@{record.number}", catalog.bring)
            with refusing():
                await control.driver.fetch(entry, told)
            return shapes.version(control.catalog.get(known.name), record).model_dump(mode="json")

        return await started(control, "quantize", f"{known.name}@{record.number}", work, wait=wait)
