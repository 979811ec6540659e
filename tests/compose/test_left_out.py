"""Keys and engine profiles of the registry that cannot be had on this server: told, mended, removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compose.live_files import file_yard
from compose.test_catalog import yard_in
from gateway.live_yard import LiveYard, sections, short_folder
from gateway.test_engines import ask, put, register, version
from gateway.test_keys import BOSS, FILE
from modelyard.compose import additions, upkeep
from modelyard.compose.additions import MARK, Additions
from modelyard.config import Config, Key, Scope, ServerSetting
from modelyard.engines.base import Profile
from modelyard.errors import ConfigRefused
from modelyard.registry import Json, KeyRecord, ProfileRecord, Registry
from waiting import until

PROGRAM: dict[str, Any] = {"environment": {"A": "b"}}
ALLOWED: dict[str, Any] = {"registry": {"allow_programs": True}}
HEADERS = {"authorization": f"Bearer {BOSS}"}


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.05)


def record(name: str, revision: int = 1, **fields: Any) -> ProfileRecord:
    return ProfileRecord(name, revision, {"type": "fake", **fields}, 1.0, float(revision), "bob")


async def told(yard: LiveYard, name: str = "gpu") -> dict[str, Any]:
    answer = await ask(yard, "GET", f"/v1/engines/{name}")
    assert answer.status == 200, answer.body
    listed = (await ask(yard, "GET", "/v1/engines")).body["data"]
    assert answer.body in listed
    return answer.body


def unusable(yard: LiveYard) -> list[str]:
    return list(yard.yard.catalog._held.unusable)


def is_served(yard: LiveYard, name: str = "m") -> bool:
    return name in {entry.spec.model for entry in yard.yard.names.all()}


async def test_a_profile_with_a_program_is_told_mended_and_removed() -> None:
    with short_folder() as folder:
        async with yard_in(folder, {}, **ALLOWED) as yard:
            for name in ("gpu", "unused"):
                await put(yard, name, **PROGRAM)
            assert (await register(yard)).status == 201
        async with yard_in(folder, {}) as yard:
            shown = await told(yard)
            assert (shown["owner"], shown["revision"], shown["models"]) == ("registry", 1, 0)
            assert "engines.gpu.environment: says what is run" in shown["error"]
            assert not is_served(yard)
            used = await ask(yard, "DELETE", "/v1/engines/gpu")
            assert (used.status, used.code) == (409, "engine_in_use")
            stale = await ask(yard, "PUT", "/v1/engines/gpu", {"type": "fake"}, if_match='"2"')
            assert (stale.status, stale.code) == (412, "revision_mismatch")
            mended = await ask(yard, "PUT", "/v1/engines/gpu", {"type": "fake"}, if_match='"1"')
            assert (mended.status, mended.body["error"], mended.headers["etag"]) == (200, "", '"2"')
            await until(lambda: is_served(yard))
            await version(yard)
            assert (await ask(yard, "DELETE", "/v1/engines/unused", if_match='"1"')).status == 204
            assert (await ask(yard, "GET", "/v1/engines/unused")).code == "engine_not_found"
            assert (await told(yard))["models"] == 1


async def test_a_change_of_the_file_has_it_tried_again() -> None:
    async with file_yard({}) as yard:
        other = Registry(yard.folder / "data" / "registry.db")
        await other.profiles.put(record("gpu", **PROGRAM))
        await until(lambda: bool(unusable(yard)))
        assert (await yard.change({}, **ALLOWED)).status == 200
        await until(lambda: not unusable(yard))
        assert (await told(yard))["error"] == ""
        await other.close()


async def test_names_that_the_file_has_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    """Another server has given them."""
    settings = {**FILE, "engines": {"gpu": {"type": "fake", "defaults": {"seed": 1}}}}
    with short_folder() as folder:
        async with yard_in(folder, {}, **settings) as yard:
            yard.http.headers.update(HEADERS)
            other = Registry(folder / "data" / "registry.db")
            await other.profiles.put(record("gpu"))
            key = Key("boss", "0" * 64, frozenset(Scope), expires=None)
            await other.keys.add(KeyRecord(key, 1.0, "bob"), check=lambda keys: None)
            for _ in range(3):
                await yard.yard._upkeep.read()
            assert capsys.readouterr().out.count("registry.unusable") == 2
            shown = await told(yard)
            assert (shown["owner"], shown["defaults"], shown["revision"]) == ("file", {"seed": 1}, 1)
            assert "is a name that the registry has as well" in shown["error"]
            assert (await ask(yard, "PUT", "/v1/engines/gpu", {"type": "fake"})).code == "owned_by_file"
            keys = (await ask(yard, "GET", "/v1/keys")).body["data"]
            assert [(one["owner"], bool(one["error"])) for one in keys] == [
                ("file", False),
                ("registry", True),
            ]
            mark = folder / "data" / MARK
            assert not mark.exists(), "a start without the database expects its keys"
            await put(yard, "another")
            assert not mark.exists()
            (folder / "modelyard.yaml").write_text(sections(folder, {}))
            with pytest.raises(ConfigRefused, match="everybody would be let in"):
                await yard.yard.live.apply(folder / "modelyard.yaml", dry_run=False)
            for path in ("/v1/engines/gpu", "/v1/keys/boss"):
                assert (await ask(yard, "DELETE", path)).status == 204
                assert (await ask(yard, "DELETE", path)).code == "owned_by_file"
            assert mark.exists()
            assert (await told(yard))["error"] == ""
            assert len((await ask(yard, "GET", "/v1/keys")).body["data"]) == 1
            found = await other.all()
            assert not found.keys
            assert found.profiles.keys() == {"another"}
            await other.close()


def test_a_profile_is_made_once_as_long_as_its_record_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, made = Config(ServerSetting(Path("data"))), list[str]()
    make = additions.made_of

    def counted(name: str, fields: Json) -> Profile:
        made.append(name)
        return make(name, fields)

    monkeypatch.setattr(additions, "made_of", counted)
    first = Additions(profiles={name: record(name) for name in ("a", "b")})
    for _ in range(3):
        assert set(first.to(base).profiles) >= {"a", "b"}
    again = first.then({}, {"a": record("a"), "b": record("b", 2, defaults={"seed": 5})})
    assert again.to(base).profiles["b"].defaults == {"seed": 5}
    assert made == ["a", "b", "b"]
    assert set(again.without({"engines.a"}).to(base).profiles) >= {"b"}
    assert made == ["a", "b", "b"]
