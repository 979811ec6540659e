"""What a registry does, on each database that it may live in."""

from __future__ import annotations

from pathlib import Path

from modelyard.registry import Capabilities, Filter, NewVersion, Registry


async def test_a_model_is_registered_and_found(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/registry.db")
    try:
        version = NewVersion({"engine": "fake"}, "ab" * 32, Capabilities(frozenset({"chat"})))
        made = await registry.register("a/b:c", version, who="me", policy={"pin": True}, aliases=["b"])
        assert await registry.get("b") == made
        assert (await registry.list(Filter(capability="chat"))).models == (made,)
    finally:
        await registry.close()
