"""`/admin/config`: the order to serve another configuration, or to say what that would change.

Wired by `gateway/admin.py`; carried out by whoever made the yard. A configuration comes as the path of a file
on this machine, never as its text: it says which programs are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import Field

from modelyard.config.difference import Kind, ModelChange, Value
from modelyard.errors import ConfigRefused, RestartNeeded, ShuttingDown, UnsupportedMediaType
from modelyard.gateway import views
from modelyard.gateway.kept_plans import Kept, Plans
from modelyard.gateway.live import Applied, LiveConfig
from modelyard.gateway.plan import PlanConfig, PlanView, apply_config
from modelyard.gateway.plan import view_of as view_of_plan
from modelyard.gateway.reference import refusals


class ConfigOrder(PlanConfig):
    """Which configuration is to be served."""

    dry_run: bool = Field(default=False, description="Change nothing; say what would.")


class FieldChange(views.View):
    path: str
    before: Any = Field(description="null where it was not set.")
    after: Any = Field(description="null where it is not set any more.")


class ModelDifference(views.View):
    """What becomes of one model."""

    model: str
    kind: Kind = Field(
        description="added, removed; replaced: another version, under the same name; policy: no process is "
        "touched."
    )
    version: str | None = Field(description="As it will be; null for one that goes.")
    fields: list[FieldChange] = Field(description="Below `models.<model>`.")
    running: int = Field(description="Requests that finish on what goes before it leaves.")


class ConfigChange(views.View):
    """What a configuration changes."""

    source: str
    applied: bool
    models: list[ModelDifference]
    settings: list[FieldChange] = Field(description="What is not a model's.")
    plan: PlanView | None = Field(
        description="What that does to instances, as it was planned before it was done; null where a bug "
        "prevented it."
    )


def add_config(router: APIRouter, live: LiveConfig, plans: Plans) -> None:
    @router.post(
        "/config",
        tags=["configuration"],
        responses=refusals(ConfigRefused, RestartNeeded, ShuttingDown, UnsupportedMediaType),
    )
    async def change(order: Annotated[ConfigOrder | None, Body()] = None) -> ConfigChange:
        """Serve another configuration without a restart, all of it or nothing."""
        order = order or ConfigOrder()
        return view_of(*await apply_config(live, plans, order.file, dry_run=order.dry_run))


def view_of(applied: Applied, kept: Kept | None) -> ConfigChange:
    return ConfigChange(
        source=str(applied.source),
        applied=applied.done,
        models=[_model(one, applied.running) for one in applied.difference.models],
        settings=[_field(one) for one in applied.difference.settings],
        plan=view_of_plan(kept) if kept is not None else None,
    )


def _model(change: ModelChange, running: Mapping[str, int]) -> ModelDifference:
    return ModelDifference(
        model=change.name,
        kind=change.kind,
        version=change.after.spec.version if change.after is not None else None,
        fields=[_field(one) for one in change.fields],
        running=running.get(change.name, 0),
    )


def _field(change: Value) -> FieldChange:
    return FieldChange(path=change.path, before=change.before, after=change.after)
