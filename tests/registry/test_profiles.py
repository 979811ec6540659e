"""Engine profiles as they are kept, on both kinds of databases."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from modelyard.errors import EngineInUse, InvalidRequest, RevisionMismatch, SpecRefused
from modelyard.registry import NewVersion, ProfileRecord, Registry, checks


def profile(name: str = "gpu", revision: int = 1, **fields: Any) -> ProfileRecord:
    return ProfileRecord(name, revision, {"type": "fake", **fields}, 1000.5, 1000.5 + revision, "ada")


async def test_a_profile_comes_back_as_it_was_until_it_is_removed(
    registry: Registry, other: Registry
) -> None:
    first = profile(environment={"TOKEN": "s3cret"}, devices=["gpu0"])
    await registry.profiles.put(first)
    assert (await other.all()).profiles == {"gpu": first}
    second = profile(revision=2, defaults={"seed": 1})
    await other.profiles.put(second)
    assert (await registry.all()).profiles == {"gpu": second}
    await registry.profiles.remove(second, who="bob", at=2000.0)
    assert (await other.all()).profiles == {}
    changes = await registry.audit()
    assert [(one.who, one.action) for one in changes] == [
        ("bob", "remove_engine"),
        ("ada", "put_engine"),
        ("ada", "put_engine"),
    ]
    assert changes[2].after == {
        "name": "gpu",
        "type": "fake",
        "environment": {"TOKEN": "…"},
        "devices": ["gpu0"],
    }
    assert changes[1].before == changes[2].after
    assert "s3cret" not in str(changes)


async def test_what_another_server_has_changed_is_not_overwritten(
    registry: Registry, other: Registry
) -> None:
    with pytest.raises(RevisionMismatch):
        await registry.profiles.put(profile(revision=2))
    outcomes = await asyncio.gather(
        *(server.profiles.put(profile(seed=server.name)) for server in (registry, other)),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in outcomes) == ["NoneType", "RevisionMismatch"]
    for stale in (profile(revision=2), profile(name="none")):
        with pytest.raises(RevisionMismatch):
            await registry.profiles.remove(stale, who="ada", at=1.0)
    assert list((await registry.all()).profiles) == ["gpu"]


async def test_one_that_a_version_names_stays_whichever_server_it_came_from(
    registry: Registry, other: Registry
) -> None:
    await registry.profiles.put(profile())
    plain = NewVersion({"engine": "fake"}, "0" * 12)
    named = NewVersion({"engine": "gpu"}, "1" * 12, profiled=True)
    await other.register("m", plain, who="bob")
    await other.add_version("m", named, who="bob")
    with pytest.raises(EngineInUse, match="version 2 of m is run with gpu"):
        await registry.profiles.remove(profile(), who="ada", at=1.0)
    assert list((await registry.all()).profiles) == ["gpu"]
    await other.delete("m", who="bob")
    await registry.profiles.remove(profile(), who="ada", at=1.0)


async def test_no_version_comes_whose_profile_was_removed_meanwhile(
    registry: Registry, other: Registry
) -> None:
    await registry.profiles.put(profile())
    await other.register("m", NewVersion({"engine": "fake"}, "0" * 12), who="bob")
    named = NewVersion({"engine": "gpu"}, "1" * 12, profiled=True)
    outcomes = await asyncio.gather(
        registry.profiles.remove(profile(), who="ada", at=1.0),
        other.register("n", named, who="bob"),
        other.add_version("m", named, who="bob"),
        return_exceptions=True,
    )
    found = await registry.all()
    assert bool(found.profiles) == any(
        version.spec == named.spec for versions in found.versions.values() for version in versions
    )
    assert any(isinstance(one, EngineInUse | SpecRefused) for one in outcomes)
    if found.profiles:
        return
    for refused in (other.register("n", named, who="bob"), other.add_version("m", named, who="bob")):
        with pytest.raises(SpecRefused, match="'gpu' was removed meanwhile"):
            await refused


async def test_what_cannot_be_kept_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (
        profile(name="a b"),
        profile(defaults={"seed": float("nan")}),
        replace(profile(), changed_by="a" * 201),
    ):
        with pytest.raises(InvalidRequest):
            await registry.profiles.put(wrong)
    monkeypatch.setattr(checks, "MOST_ADDITIONS", 1)
    await registry.profiles.put(profile())
    with pytest.raises(InvalidRequest, match="remove some"):
        await registry.profiles.put(profile(name="other"))
    await registry.profiles.put(profile(revision=2))
