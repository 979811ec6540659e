"""What a registry does, on each database that it may live in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from modelyard.errors import InvalidRequest, ModelNotFound, NameTaken, RevisionMismatch, VersionNotFound
from modelyard.registry import (
    Artifact,
    Capabilities,
    ModelRecord,
    NewVersion,
    Registry,
    VersionState,
)
from modelyard.registry.records import FileFacts
from registry.making import new_version, register

Change = Callable[[Registry, int | None], Awaitable[object]]
SHA = "5f" * 32


async def names(registry: Registry) -> list[str]:
    return [model.name for model in (await registry.all()).models]


# -- a model --------------------------------------------------------------------------------------------


async def test_a_model_is_what_was_registered(registry: Registry, other: Registry) -> None:
    version = new_version("one", "chat", "tools", pairs=(("en", "de"), ("de", "en")))
    made = await registry.register(
        "org/qwen:7b", version, who="ada", policy={"pin": True}, aliases=["q", "a"], description="Größe 7 ✓"
    )
    assert made == ModelRecord(
        name="org/qwen:7b",
        revision=1,
        owner="ada",
        description="Größe 7 ✓",
        current=made.current,
        previous=None,
        policy={"pin": True},
        aliases=("q", "a"),
        tags={},
        created=made.created,
        changed=made.created,
    )
    current = made.current
    assert (current.model, current.number, current.digest) == ("org/qwen:7b", 1, version.digest)
    assert (current.spec, current.capabilities) == (version.spec, version.capabilities)
    assert (current.state, current.detail, current.created_by) == (VersionState.REGISTERED, "", "ada")
    for name in ("org/qwen:7b", "q", "a"):
        assert await other.get(name) == made


@pytest.mark.parametrize("spec", [{}, {"a": {"b": [1, 2.5, None, True, "ü\u0000\ud800"]}}, {"n": 2**60}])
async def test_a_spec_comes_back_as_it_was(registry: Registry, spec: dict[str, Any]) -> None:
    made = await registry.register("a", NewVersion(spec, SHA), who="ada", policy=spec)
    found = await registry.get("a")
    assert (found.current.spec, found.policy) == (spec, spec) == (made.current.spec, made.policy)


@pytest.mark.parametrize(
    ("name", "aliases"), [("a", []), ("b", []), ("c", ["a"]), ("c", ["d", "b"])], ids=str
)
async def test_a_name_means_one_model(registry: Registry, name: str, aliases: list[str]) -> None:
    await register(registry, "a", aliases=["b"])
    with pytest.raises(NameTaken, match=r"'[ab]' is taken: it is (an alias of 'a'|a model)"):
        await register(registry, name, aliases=aliases)
    await register(registry, "x")
    with pytest.raises(NameTaken):
        await registry.update("x", who="ada", aliases=[name, *aliases] if name != "c" else aliases)
    assert await names(registry) == ["a", "x"]
    assert (await registry.get("x")).aliases == ()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "../../etc/passwd"}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "ä"}, "name"),
        ({"name": "a" * 201}, "name"),
        ({"aliases": ["b", "b"]}, "aliases"),
        ({"aliases": ["a"]}, "aliases"),
        ({"aliases": ["-"]}, "aliases"),
        ({"aliases": [f"b{index}" for index in range(101)]}, "aliases"),
        ({"description": "a\0b"}, "description"),
        ({"description": "\ud800"}, "description"),
        ({"description": "a" * 8193}, "description"),
        ({"who": "a" * 201}, "who"),
        ({"policy": {"a": float("nan")}}, "policy"),
        ({"policy": {"a": {1, 2}}}, "policy"),
        ({"policy": ["a"]}, "policy"),
        ({"policy": {"a": "b" * 2**20}}, "policy"),
        ({"version": NewVersion({"a": float("inf")}, SHA)}, "spec"),
        ({"version": NewVersion({}, "no digest")}, "digest"),
        ({"version": NewVersion({}, SHA + "\n")}, "digest"),
        ({"version": NewVersion({}, SHA, Capabilities(frozenset({"Chat"})))}, "capabilities"),
        ({"version": NewVersion({}, SHA, Capabilities(pairs=(("en", "d>e"),)))}, "capabilities.languages"),
        ({"version": NewVersion({}, SHA, Capabilities(context=0))}, "capabilities.context"),
    ],
    ids=lambda it: str(it)[:40],
)
async def test_what_cannot_be_kept_is_refused(registry: Registry, change: dict[str, Any], param: str) -> None:
    given: dict[str, Any] = {"name": "a", "version": new_version(), "who": "ada", **change}
    with pytest.raises(InvalidRequest) as caught:
        await registry.register(**given)
    assert caught.value.param == param
    assert await names(registry) == []


async def test_what_is_deleted_is_gone_and_its_names_are_free(registry: Registry) -> None:
    made = await register(registry, "a", "chat", aliases=["b"])
    await registry.add_version("a", new_version("second"), who="ada")
    await registry.tag("a", "prod", 2, who="ada")
    assert (await registry.delete("b", who="bob")).name == made.name
    for name in ("a", "b"):
        with pytest.raises(ModelNotFound):
            await registry.get(name)
        with pytest.raises(ModelNotFound):
            await registry.delete(name, who="bob")
    assert await names(registry) == []
    assert (await register(registry, "b", aliases=["a"])).revision == 1
    assert [len(each) for each in (await registry.all()).versions.values()] == [1]


@pytest.mark.parametrize("text", ["a\0", "\ud800", "a" * 9000])
async def test_what_cannot_be_there_is_not_looked_for(registry: Registry, text: str) -> None:
    await register(registry, "a")
    for read in (
        lambda: registry.get(text),
        lambda: registry.policies(text),
        lambda: registry.audit(text),
        lambda: registry.untag("a", text, who="ada"),
        lambda: registry.untag("a", "b", who=text),
    ):
        with pytest.raises(InvalidRequest):
            await read()
    for before in (-(2**70), 2**70):
        assert len(await registry.audit(before=before)) == (before > 0)


# -- versions -------------------------------------------------------------------------------------------


async def test_versions_are_numbered_and_stay(registry: Registry) -> None:
    await register(registry, "a", aliases=["b"])
    added = await registry.add_version("b", new_version("second", "chat"), who="bob")
    assert (added.created, added.version.number, added.version.created_by) == (True, 2, "bob")
    assert (added.model.revision, added.model.current.number) == (2, 1)
    assert (await registry.all()).versions["a"] == (added.model.current, added.version)
    for number in (0, 3, -1, 2**40):
        with pytest.raises(VersionNotFound, match=f"no version {number}"):
            await registry.artifacts("a", number)


async def test_the_same_digest_is_the_same_version(registry: Registry) -> None:
    made = await register(registry, "a")
    await register(registry, "b")
    again = await registry.add_version(
        "a", NewVersion({"other": 1}, made.current.digest), who="bob", match=99
    )
    assert (again.created, again.version, again.model) == (False, made.current, made)
    assert (await registry.add_version("b", NewVersion({}, made.current.digest), who="bob")).created


async def test_promote_remembers_the_one_before(registry: Registry) -> None:
    await register(registry, "a", "chat")
    await registry.add_version("a", new_version("second", "vision"), who="ada")
    promoted = await registry.set_current("a", 2, who="ada")
    assert (promoted.current.number, promoted.previous) == (2, 1)
    assert promoted.current.capabilities.features == {"vision"}
    again = await registry.set_current("a", 2, who="ada")
    assert (again.current.number, again.previous) == (2, 1)
    back = await registry.set_current("a", 1, who="ada")
    assert (back.current.number, back.previous, back.revision) == (1, 2, 5)
    with pytest.raises(VersionNotFound):
        await registry.set_current("a", 3, who="ada")
    assert await registry.get("a") == back


async def test_tags_name_versions(registry: Registry) -> None:
    await register(registry, "a")
    await registry.add_version("a", new_version("second"), who="ada")
    await registry.tag("a", "v1.0", 1, who="ada")
    assert (await registry.tag("a", "prod", 1, who="ada")).tags == {"prod": 1, "v1.0": 1}
    assert (await registry.tag("a", "prod", 2, who="ada")).tags == {"prod": 2, "v1.0": 1}
    assert (await registry.untag("a", "v1.0", who="ada")).tags == {"prod": 2}
    for tag in ("v1.0", "other"):
        with pytest.raises(VersionNotFound, match=f"no tag '{tag}'"):
            await registry.untag("a", tag, who="ada")
    with pytest.raises(VersionNotFound):
        await registry.tag("a", "prod", 3, who="ada")
    for tag in ("", "a:b", "a@b", "a b", "-a", "a" * 65, "a\n"):
        with pytest.raises(InvalidRequest):
            await registry.tag("a", tag, 1, who="ada")
    assert (await registry.get("a")).tags == {"prod": 2}


async def test_what_is_found_out_about_a_version(registry: Registry) -> None:
    made = await register(registry, "a", "chat")
    files = (Artifact("a.gguf", "hf://org/repo/a.gguf", 2**40, SHA, "MIT"), Artifact("b", "file:///b", 0))
    can = Capabilities(frozenset({"chat", "vision"}), 8192, files=FileFacts(2**40, "llama", "q8_0", 1, "MIT"))
    report = registry.report
    seen = await report("a", 1, VersionState.VERIFIED, who="server", capabilities=can, artifacts=files)
    assert (seen.state, seen.capabilities, seen.digest) == (VersionState.VERIFIED, can, made.current.digest)
    assert await registry.artifacts("a", 1) == files
    assert (await registry.get("a")).current == seen
    stamp = await registry.stamp()
    await report("a", 1, VersionState.VERIFIED, who="server", capabilities=can, artifacts=files[::-1])
    await report("a", 1, VersionState.VERIFIED, who="server")
    assert await registry.stamp() == stamp  # it was known, and is not written again
    failed = await report("a", 1, VersionState.FAILED, who="server", detail="the disk is full")
    assert (failed.state, failed.detail, failed.capabilities) == (
        VersionState.FAILED,
        "the disk is full",
        can,
    )
    assert await registry.artifacts("a", 1) == files
    assert (await registry.get("a")).current == failed
    made_from = (Artifact("q.gguf", "quantized", 5, SHA, made_from="0a" * 32),)
    await report("a", 1, VersionState.VERIFIED, who="server", artifacts=made_from)
    assert await registry.artifacts("a", 1) == made_from
    assert (await registry.get("a")).revision == made.revision
    with pytest.raises(VersionNotFound):
        await report("a", 2, VersionState.FAILED, who="server")
    with pytest.raises(VersionNotFound):
        await registry.artifacts("a", 2)


@pytest.mark.parametrize(
    "files",
    [
        [Artifact("a", "b", -1)],
        [Artifact("a", "b", 2**63)],
        [Artifact("a", "b", 1, "short")],
        [Artifact("a", "b", 1, made_from="short")],
        [Artifact("a", "b", 1), Artifact("a", "c", 2)],
        [Artifact("a" * 1025, "b", 1)],
    ],
)
async def test_files_that_cannot_be_are_refused(registry: Registry, files: list[Artifact]) -> None:
    await register(registry, "a")
    with pytest.raises(InvalidRequest):
        await registry.report("a", 1, VersionState.VERIFIED, who="server", artifacts=files)
    assert await registry.artifacts("a", 1) == ()


# -- policy, aliases ------------------------------------------------------------------------------------


async def test_a_policy_keeps_its_history(registry: Registry) -> None:
    await register(registry, "a", policy={"pin": True})
    changed = await registry.update("a", who="bob", policy={"priority": "high"})
    assert (changed.policy, changed.revision, changed.aliases) == ({"priority": "high"}, 2, ())
    history = await registry.policies("a")
    assert [(one.number, one.policy, one.created_by) for one in history] == [
        (2, {"priority": "high"}, "bob"),
        (1, {"pin": True}, "ada"),
    ]
    assert await registry.policies("a", limit=1) == history[:1]
    assert await registry.policies("a", before=2) == history[1:]


async def test_an_update_changes_what_it_names(registry: Registry) -> None:
    await register(registry, "a", policy={"pin": True}, aliases=["x", "y"], description="one")
    changed = await registry.update("a", who="ada", aliases=["y", "b"], description="two")
    assert (changed.aliases, changed.description, changed.policy) == (("y", "b"), "two", {"pin": True})
    with pytest.raises(ModelNotFound):
        await registry.get("x")
    assert (await registry.update("a", who="ada", aliases=[])).aliases == ()
    assert (await register(registry, "b", aliases=["x"])).aliases == ("x",)
    with pytest.raises(NameTaken) as taken:
        await registry.update("a", who="ada", aliases=["x"], description="three", policy={})
    assert taken.value.param == "aliases"
    for name, aliases, param in (("x", [], "name"), ("c", ["d", "x"], "aliases")):
        with pytest.raises(NameTaken) as taken:
            await register(registry, name, aliases=aliases)
        assert taken.value.param == param
    assert (await registry.get("a")).description == "two"
    assert len(await registry.policies("a")) == 1


CHANGES: dict[str, Change] = {
    "add_version": lambda it, match: it.add_version("a", new_version("next"), who="bob", match=match),
    "set_current": lambda it, match: it.set_current("a", 1, who="bob", match=match),
    "tag": lambda it, match: it.tag("a", "prod", 1, who="bob", match=match),
    "untag": lambda it, match: it.untag("a", "old", who="bob", match=match),
    "update": lambda it, match: it.update("a", description="next", who="bob", match=match),
    "delete": lambda it, match: it.delete("a", who="bob", match=match),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_names_what_it_read(registry: Registry, change: Change) -> None:
    await register(registry, "a")
    before = await registry.tag("a", "old", 1, who="ada")
    assert before.revision == 2
    for stale in (1, 3):
        with pytest.raises(RevisionMismatch, match=f"has revision 2, not {stale}"):
            await change(registry, stale)
    assert await registry.get("a") == before
    assert [entry.who for entry in await registry.audit()] == ["ada", "ada"]
    await change(registry, 2)
    assert [entry.who for entry in await registry.audit()] == ["bob", "ada", "ada"]
    with pytest.raises((RevisionMismatch, ModelNotFound, VersionNotFound)):
        await change(registry, 2) if change is not CHANGES["add_version"] else await registry.add_version(
            "a", new_version("third"), who="bob", match=2
        )


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_an_unknown_model_is_not_changed(registry: Registry, change: Change) -> None:
    with pytest.raises(ModelNotFound, match="no model 'a'"):
        await change(registry, None)
    assert await registry.audit() == ()


# -- the log --------------------------------------------------------------------------------------------


async def test_the_log_tells_who_changed_what(registry: Registry) -> None:
    await register(registry, "a", policy={"pin": True})
    await registry.update("a", who="bob", policy={"pin": False}, description="new")
    await register(registry, "b")
    await registry.delete("a", who="eve")
    log = await registry.audit()
    assert [(one.who, one.action, one.model) for one in log] == [
        ("eve", "delete", "a"),
        ("ada", "register", "b"),
        ("bob", "update", "a"),
        ("ada", "register", "a"),
    ]
    assert log[2].before == {"policy": {"pin": True}, "description": ""}
    assert log[2].after == {"policy": {"pin": False}, "description": "new"}
    assert (log[0].after, log[3].before) == (None, None)
    assert log[0].before is not None
    assert log[0].before["policy"] == {"pin": False}
    assert await registry.audit("a") == (log[0], log[2], log[3])
    assert await registry.audit("a", before=log[0].id, limit=1) == (log[2],)
    assert await registry.audit(limit=2) == log[:2]


async def test_the_log_keeps_no_secret(registry: Registry) -> None:
    spec = {
        "source": "https://ada:s3cret@files.lan/a.gguf?signature=s3cret",
        "parameters": {"api_key": "s3cret", "extra_args": ["--api-key", "s3cret", "--token=s3cret"]},
    }
    await registry.register("a", NewVersion(spec, SHA), who="ada", policy={"x": {"password": "s3cret"}})
    await registry.add_version("a", NewVersion(spec, "0a" * 32), who="ada")
    await registry.update("a", who="ada", policy={"token": "s3cret"})
    await registry.delete("a", who="ada")
    log = await registry.audit()
    assert len(log) == 4
    assert "s3cret" not in str(log)
    assert "https://…@files.lan/a.gguf?…" in str(log)


# -- what servers share ---------------------------------------------------------------------------------


async def test_the_digest_key_is_the_same_for_all_and_stays(
    registry: Registry, other: Registry, url: str
) -> None:
    key = await registry.digest_key()
    assert len(bytes.fromhex(key)) == 32
    assert await other.digest_key() == key
    later = Registry(url)
    assert await later.digest_key() == key
    await later.close()


async def test_another_server_sees_that_something_changed(registry: Registry, other: Registry) -> None:
    stamps = [await other.stamp()]
    await register(registry, "a")
    stamps.append(await other.stamp())
    await registry.report("a", 1, VersionState.VERIFIED, who="server")
    stamps.append(await other.stamp())
    await registry.delete("a", who="ada")
    stamps.append(await other.stamp())
    assert stamps == sorted(set(stamps))
    assert not other.made_all(stamps[0], stamps[-1])
    assert registry.made_all(stamps[0], stamps[-1])
    assert registry.made_all(stamps[-1], stamps[-1])
    catalog = await registry.all()
    assert (catalog.stamp, catalog.models, catalog.versions) == (stamps[-1], (), {})


async def test_the_catalog_is_everything(registry: Registry, other: Registry) -> None:
    for name in ("b", "a", "c"):
        await register(registry, name, aliases=[f"{name}-1", f"{name}-0"], policy={"of": name})
        await registry.add_version(name, new_version("second"), who="ada")
        await registry.tag(name, "prod", 2, who="ada")
    await registry.set_current("b", 2, who="ada")
    catalog = await other.all()
    assert catalog.models == tuple([await registry.get(name) for name in ("a", "b", "c")])
    assert {name: [one.number for one in each] for name, each in catalog.versions.items()} == {
        name: [1, 2] for name in ("a", "b", "c")
    }
