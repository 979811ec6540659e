"""Model stores as Ollama writes them: manifests that name layers, and blobs named by their digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAYER = "application/vnd.ollama.image."


def blob(store: Path, content: bytes | Path) -> dict[str, Any]:
    """Put a blob into the store (a path is linked). Its digest and size, as a manifest has them."""
    data = content.read_bytes() if isinstance(content, Path) else content
    digest = hashlib.sha256(data).hexdigest()
    path = store / "blobs" / f"sha256-{digest}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if isinstance(content, Path):
            os.symlink(content, path)
        else:
            path.write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def add_model(
    store: Path, name: str, model: bytes | Path | None, layers: Mapping[str, Any] | None = None, **about: Any
) -> Path:
    """Add a model, and return its manifest's path. `name` is [[HOST/]NAMESPACE/]MODEL:TAG, `layers` further
    ones by kind (texts and bytes as they are, all else as JSON); `about` goes into its description."""
    whole, _, tag = name.rpartition(":")
    parts = whole.split("/")
    host, namespace, model_name = ["registry.ollama.ai", "library"][: 3 - len(parts)] + parts
    config = {
        "model_format": "gguf",
        "model_family": "llama",
        "architecture": "amd64",
        "os": "linux",
        **about,
    }
    written = [] if model is None else [{"mediaType": f"{LAYER}model", **blob(store, model)}]
    for kind, content in (layers or {}).items():
        data = (
            content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else None
        )
        described = blob(store, json.dumps(content).encode() if data is None else data)
        written.append({"mediaType": f"{LAYER}{kind}", **described})
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            **blob(store, json.dumps(config).encode()),
        },
        "layers": written,
    }
    path = store / "manifests" / host / namespace / model_name / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path
