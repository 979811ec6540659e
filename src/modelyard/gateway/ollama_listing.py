"""What Ollama's API tells of models: those that there are, those in memory, and one in detail.

Used by `listing` (the routes without a body) and by the inference lanes (`/api/show`). Changes nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

from fastapi import APIRouter, Response

from modelyard import __version__
from modelyard.core.state import Instance
from modelyard.gateway import views
from modelyard.gateway.names import Names
from modelyard.gateway.snapshot import Snapshot
from modelyard.runtime.entries import Entry
from modelyard.store.quantize import type_of

SPOKEN = "0.12.6"
"""The version of Ollama whose API this is: clients look at it before they use what came with a version."""
FOREVER = timedelta(days=100 * 365)


def add_ollama(router: APIRouter, names: Names, snapshot: Snapshot) -> None:
    """The routes of Ollama's API that take no body."""

    @router.head("/", include_in_schema=False)
    @router.head("/api/version", include_in_schema=False)
    async def alive() -> Response:
        """How Ollama's command line looks whether a server is there."""
        return Response()

    @router.get("/api/tags", tags=["ollama"])
    async def tags() -> views.OllamaModels:
        """The models, as Ollama lists them."""
        return views.OllamaModels(models=[_listed(entry, snapshot) for entry in names.all()])

    @router.get("/api/ps", tags=["ollama"])
    async def running() -> views.OllamaModels:
        """The models that are in memory, once for each instance."""
        return views.OllamaModels(
            models=[
                _running(entry, instance, snapshot)
                for entry in names.all()
                for instance in snapshot.ready(entry)
            ]
        )

    @router.get("/api/version", tags=["ollama"])
    async def version() -> views.OllamaVersion:
        """The version of Ollama's API that is spoken here."""
        return views.OllamaVersion(version=SPOKEN, modelyard=__version__)


def shown(entry: Entry, snapshot: Snapshot) -> dict[str, Any]:
    """The answer to `/api/show`."""
    header = _header(entry)
    kept = {name: header[name] for name in header if not name.startswith(("tensors.", "tokenizer."))}
    context = snapshot.capabilities(entry).context
    family = str(header.get("general.architecture", entry.engine.type))
    if context is not None:
        kept[f"{family}.context_length"] = context
    return {
        "modelfile": "",
        "parameters": "" if context is None else f"num_ctx {context}",
        "template": "",
        "details": _details(entry).model_dump(),
        "model_info": {"general.architecture": family, **kept},
        "capabilities": _capabilities(entry),
        "modified_at": _time(snapshot.created),
    }


def _capabilities(entry: Entry) -> list[str]:
    """Ollama's words. Whether a model is good at tools its engine cannot say: they may be offered to all."""
    found = set(entry.spec.capabilities & {"vision", "thinking", "tools"})
    if "/v1/chat/completions" in entry.paths:
        found |= {"completion", "tools"}
    if "/v1/embeddings" in entry.paths:
        found.add("embedding")
    if entry.spec.parameters.get("mmproj"):
        found.add("vision")
    return sorted(found)


def _listed(entry: Entry, snapshot: Snapshot) -> views.OllamaModel:
    return views.OllamaModel(
        name=entry.spec.model,
        model=entry.spec.model,
        modified_at=_time(snapshot.created),
        size=_size(entry),
        digest=entry.spec.digest,
        details=_details(entry),
    )


def _running(entry: Entry, instance: Instance, snapshot: Snapshot) -> views.OllamaModel:
    listed = _listed(entry, snapshot)
    vram = sum(charge.bytes for charge in instance.placement if charge.device != "ram")
    return listed.model_copy(
        update={
            "size": instance.bytes,
            "size_vram": vram,
            "context_length": snapshot.capabilities(entry).context,
            "expires_at": _expiry(instance, snapshot),
        }
    )


def _expiry(instance: Instance, snapshot: Snapshot) -> str:
    """When it leaves if nobody asks for it; far away for one that stays."""
    policy, now = instance.version.policy, datetime.now(UTC)
    if policy.pin or policy.home or not isfinite(instance.keep_alive):
        return _iso(now + FOREVER)
    idle = snapshot.idle_for(instance)
    return _iso(now + timedelta(seconds=max(0.0, instance.keep_alive - idle)))


def _details(entry: Entry) -> views.OllamaDetails:
    header = _header(entry)
    family = str(header.get("general.architecture", entry.engine.type))
    return views.OllamaDetails(
        format="gguf" if header else entry.engine.type,
        family=family,
        families=[family],
        parameter_size=str(header.get("general.size_label", "")),
        quantization_level=type_of(header).upper(),
    )


def _header(entry: Entry) -> dict[str, Any]:
    file = (entry.files or {}).get("model")
    return dict(file.header) if file is not None else {}


def _size(entry: Entry) -> int:
    return sum(file.size for file in (entry.files or {}).values())


def _time(seconds: float) -> str:
    return _iso(datetime.fromtimestamp(seconds, UTC))


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
