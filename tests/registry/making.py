"""Versions and models for tests."""

from __future__ import annotations

from hashlib import sha256

from modelyard.registry import Capabilities, ModelRecord, NewVersion, Registry


def new_version(text: str = "first", *features: str, pairs: tuple[tuple[str, str], ...] = ()) -> NewVersion:
    """A version that this text tells from others."""
    spec = {"engine": "fake", "parameters": {"text": text}}
    capabilities = Capabilities(frozenset(features), 4096, ("de", "en"), pairs)
    return NewVersion(spec, sha256(text.encode()).hexdigest(), capabilities)


async def register(registry: Registry, name: str, *features: str, **rest: object) -> ModelRecord:
    return await registry.register(name, new_version(name, *features), who="ada", **rest)  # type: ignore[arg-type]
