"""What is served, in one look: models and devices with their states. Used by the list of what all may read.

It loads nothing and asks no engine.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import Field

from modelyard.gateway.names import Names
from modelyard.gateway.snapshot import Snapshot
from modelyard.gateway.views import ModelState, View


class HealthCheck(View):
    status: Literal["ok", "degraded", "starting"] = Field(
        description="degraded: a model or a device cannot be used, or something else is wrong. starting: "
        "nothing was seen of the devices yet."
    )
    models: dict[str, ModelState] = Field(
        description="The state of each model, by name.", examples=[{"chat": "idle"}]
    )
    devices: dict[str, str] = Field(
        description="`ok`, or why it is not used, by device.", examples=[{"gpu0": "ok"}]
    )


def add_health_check(router: APIRouter, names: Names, snapshot: Snapshot) -> None:
    """The route; it needs no key."""

    @router.get("/health_check", tags=["health"], responses={503: {"model": HealthCheck}})
    async def health_check(response: Response) -> HealthCheck:
        """What is served, in one look; 503 only when nothing can be: also when every model has failed and
        none was started well since, though a request would have it tried again. It loads nothing."""
        entries = names.all()
        broken = [entry for entry in entries if snapshot.broken(entry)]
        ready = snapshot.readiness().ready and len(broken) < len(entries)
        models = {entry.spec.model: snapshot.model_state(entry) for entry in entries}
        devices = {device.id: device.closed or "ok" for device in snapshot.devices({})}
        well = ready and snapshot.health().status == "ok" and not broken
        response.status_code = 200 if ready else 503
        return HealthCheck(
            status="ok" if well else "degraded" if devices else "starting", models=models, devices=devices
        )
