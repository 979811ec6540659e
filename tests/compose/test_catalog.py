"""Models as data in a live yard: registered, given versions, promoted beside others or instead, removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.live_yard import MB, SHARE, TWO, LiveYard, fake, live_yard, running, sections, short_folder
from modelyard import compose, config
from modelyard.compose import upkeep
from modelyard.errors import (
    AliasInUse,
    ConfigRefused,
    LoadFailed,
    ModelNotFound,
    NameTaken,
    NoRoomBeside,
    OwnedByFile,
    RegistryUnavailable,
    RevisionMismatch,
    SourceForbidden,
    SpecRefused,
    VersionNotFound,
)
from modelyard.gateway.catalog import Filter
from modelyard.registry import VersionState
from store.test_quantize import random_gguf
from waiting import until

WHO = "tester"
CLIENTS = 32


def slower(rate: int, **fields: Any) -> dict[str, Any]:
    """Another version of a fake model."""
    return fake(parameters={"memory": {"accelerator": SHARE}, "tokens_per_second": rate}, **fields)


async def register(yard: LiveYard, name: str, fields: Mapping[str, Any]) -> None:
    await yard.yard.catalog.register(name, fields, description="", who=WHO)


async def promote(yard: LiveYard, name: str, number: int, *, swap: bool = False) -> list[str]:
    steps: list[str] = []
    await yard.yard.catalog.promote(name, number, swap=swap, who=WHO, match=None, step=steps.append)
    return steps


async def answered_by(yard: LiveYard, name: str) -> str:
    answer = await yard.chat(name)
    assert answer.status == 200, answer.body
    return answer.headers["x-modelyard-version"]


@asynccontextmanager
async def yard_in(folder: Path, models: Mapping[str, Any], **settings: Any) -> AsyncIterator[LiveYard]:
    """A yard whose data folder outlives it, and whose configuration is a file."""
    path = folder / "modelyard.yaml"
    path.write_text(sections(folder, models, **settings))
    origin = compose.Origin(path, poll=0.05)
    live = LiveYard(await compose.build(config.load(path), origin), folder / "yard.sock")
    async with running(live, folder):
        yield live


async def test_a_registered_model_answers_also_after_a_restart() -> None:
    with short_folder() as folder:
        async with yard_in(folder, {"a": fake()}) as yard:
            known = await yard.yard.catalog.register(
                "org/b:1", fake(aliases=["b"], keep_alive="5m"), description="the other", who=WHO
            )
            assert known.record is not None
            assert (known.record.revision, known.record.description) == (1, "the other")
            version = await answered_by(yard, "org/b:1")
            assert version == known.entry.spec.version
            assert await answered_by(yard, "b") == version
            await until(lambda: yard.yard.catalog.get("b").entry.policy.keep_alive == 300.0)
        async with yard_in(folder, {"a": fake()}) as yard:
            assert await answered_by(yard, "b") == version
            assert await answered_by(yard, "a")
            assert yard.yard.catalog.get("b").entry.policy.keep_alive == 300.0


async def test_versions_are_asked_for_by_number_digest_and_tag() -> None:
    async with live_yard({"a": fake()}) as yard:
        catalog = yard.yard.catalog
        await register(yard, "m:x", fake())
        second, created = await catalog.add_version("m:x", slower(100), who=WHO, match=1)
        assert (second.number, created) == (2, True)
        assert await catalog.add_version("m:x", slower(100), who=WHO, match=None) == (second, False)
        await catalog.tag("m:x", "fast", 2, who=WHO, match=None)
        one, two = await answered_by(yard, "m:x"), await answered_by(yard, "m:x@2")
        assert one != two
        assert await answered_by(yard, "m:x@1") == one
        for name in (f"m:x@{second.digest}", f"m:x@{second.digest[:6]}", "m:x:fast"):
            assert await answered_by(yard, name) == two
        for name in ("m:x@3", "m:x:slow", "m:x@abcdef", "a@1", "m:x@"):
            assert (await yard.chat(name)).status == 404
        changed = [(one.path, one.after) for one in catalog.compare("m:x", 1, 2)]
        assert changed == [("parameters.tokens_per_second", 100)]
        with pytest.raises(VersionNotFound, match="has no version 3; it has 1 to 2"):
            catalog.compare("m:x", 1, 3)


@pytest.mark.parametrize("swap", [False, True])
async def test_promotion_and_rollback_lose_no_request(swap: bool) -> None:
    """Beside each other where there is room, in each other's place where there is not."""
    async with live_yard({}, memory=SHARE + MB if swap else TWO) as yard:
        await register(yard, "m", fake(slots=4, max_wait="2m"))
        await yard.yard.catalog.add_version("m", slower(400, slots=4), who=WHO, match=None)
        seen: list[str] = []
        ended = asyncio.Event()

        async def client() -> None:
            while not ended.is_set():
                seen.append(await answered_by(yard, "m"))

        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(client())
            await until(lambda: len(seen) > CLIENTS)
            steps = await promote(yard, "m", 2, swap=swap)
            assert steps == ["fetching", "loading", "switching"]
            since = len(seen)
            await until(lambda: len(seen) > since + 2 * CLIENTS)
            await promote(yard, "m", 1, swap=swap)
            since = len(seen)
            await until(lambda: len(seen) > since + 2 * CLIENTS)
            ended.set()
        first, second = seen[0], next(version for version in seen if version != seen[0])
        assert set(seen) == {first, second}
        assert seen[-1] == first
        record = yard.yard.catalog.get("m").record
        assert record is not None
        assert (record.current.number, record.previous) == (1, 2)
        await until(lambda: {one.version.key for one in yard.instances("m")} <= {first})


async def test_versions_that_do_not_fit_beside_each_other_are_told_so() -> None:
    async with live_yard({}, memory=SHARE + MB) as yard:
        await register(yard, "m", fake())
        first = await answered_by(yard, "m")
        await yard.yard.catalog.add_version("m", slower(400), who=WHO, match=None)
        with pytest.raises(NoRoomBeside, match="swap: true"):
            await promote(yard, "m", 2)
        assert await answered_by(yard, "m") == first
        assert yard.yard.names.others() == []


async def test_a_version_that_cannot_be_loaded_changes_nothing() -> None:
    async with live_yard({}) as yard:
        await register(yard, "m", fake())
        first = await answered_by(yard, "m")
        broken = fake(parameters={"exit_code": 3})
        await yard.yard.catalog.add_version("m", broken, who=WHO, match=None)
        with pytest.raises(Exception, match="m did not start"):
            await promote(yard, "m", 2)
        assert await answered_by(yard, "m") == first
        record = yard.yard.catalog.get("m").record
        assert record is not None
        assert record.current.number == 1


async def test_a_version_that_cannot_be_loaded_in_place_of_the_other_gives_it_back() -> None:
    """Whoever asks meanwhile waits, and is served by the one that comes back."""
    async with live_yard({}, memory=SHARE + MB) as yard:
        await register(yard, "m", fake(max_wait="2m"))
        first = await answered_by(yard, "m")
        await yard.yard.catalog.add_version("m", fake(parameters={"exit_code": 3}), who=WHO, match=None)
        with pytest.raises(NoRoomBeside):
            await promote(yard, "m", 2)
        ended = asyncio.Event()

        async def client() -> None:
            while not ended.is_set():
                assert await answered_by(yard, "m") == first

        async with asyncio.TaskGroup() as clients:
            for _ in range(8):
                clients.create_task(client())
            with pytest.raises(LoadFailed):
                await promote(yard, "m", 2, swap=True)
            ended.set()
        record = yard.yard.catalog.get("m").record
        assert record is not None
        assert (record.current.number, record.previous, record.revision) == (1, None, 2)


async def test_a_promotion_that_takes_long_holds_up_nobody_else() -> None:
    async with live_yard({}) as yard:
        await register(yard, "m", fake())
        slow = fake(parameters={"load_time": 30.0})
        await yard.yard.catalog.add_version("m", slow, who=WHO, match=None)
        promotion = asyncio.create_task(promote(yard, "m", 2))
        await until(lambda: yard.instances("m"))
        await register(yard, "n", fake())
        await yard.yard.catalog.tag("m", "old", 1, who=WHO, match=None)
        assert await answered_by(yard, "m")
        await yard.yard.catalog.remove("n", force=False, who=WHO, match=None)
        assert not promotion.done()
        promotion.cancel()
        await asyncio.gather(promotion, return_exceptions=True)
        record = yard.yard.catalog.get("m").record
        assert record is not None
        assert (record.current.number, dict(record.tags)) == (1, {"old": 1})
        await until(
            lambda: (
                {one.version.key for one in yard.instances("m")}
                == {yard.yard.catalog.get("m").entry.spec.version}
            )
        )


async def test_a_version_that_is_not_there_needs_no_room_beside() -> None:
    async with live_yard({}, memory=SHARE + MB) as yard:
        await register(yard, "m", fake())
        await yard.yard.catalog.add_version("m", slower(400), who=WHO, match=None)
        assert await promote(yard, "m", 2) == ["fetching", "loading", "switching"]
        first, second = (yard.yard.catalog.get(name) for name in ("m@1", "m"))
        assert first.record == second.record
        assert (first.version, second.version) == yard.yard.catalog.versions("m")
        assert yard.yard.catalog.get("m@1").entry.spec.version != await answered_by(yard, "m")


async def test_a_registry_whose_file_was_removed_takes_nothing() -> None:
    with short_folder() as folder:
        async with yard_in(folder, {}) as yard:
            await register(yard, "m", fake())
            database = folder / "data" / "registry.db"
            database.rename(folder / "elsewhere")
            with pytest.raises(RegistryUnavailable, match="was removed or replaced while it was in use"):
                await register(yard, "n", fake())
            assert await answered_by(yard, "m")
            (folder / "elsewhere").rename(database)
            await register(yard, "n", fake())


async def test_a_model_whose_file_went_is_told_mended_and_removed(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"engine": "llamacpp", "devices": ["ram"], "parameters": {"context": 64}}
    files = [tmp_path / f"{number}.gguf" for number in (1, 2)]
    for file in files:
        random_gguf(file)
    with short_folder() as folder:
        async with yard_in(folder, {"a": fake()}) as yard:
            for name in ("m", "n"):
                await register(yard, name, {**fields, "source": str(files[0])})
            await yard.yard.catalog.add_version("m", {**fields, "source": str(files[1])}, who=WHO, match=None)
        files[0].unlink()
        async with yard_in(folder, {"a": fake()}) as yard:
            catalog = yard.yard.catalog
            assert str(files[0]) in catalog.get("m").entry.problem
            page, _ = catalog.page(Filter(unusable=True), None, 10)
            assert [known.name for known in page if known.entry.problem] == ["m", "n"]
            assert (await yard.chat("m")).status == 404
            await promote(yard, "m", 2)
            assert catalog.get("m").entry.problem == ""
            assert yard.yard.names.model("m").spec.source == str(files[1])
            await catalog.remove("n", force=False, who=WHO, match=None)
            with pytest.raises(ModelNotFound):
                catalog.get("n")


async def test_a_swap_takes_the_place_of_a_model_that_is_pinned() -> None:
    async with live_yard({}, memory=SHARE + MB) as yard:
        await register(yard, "m", fake(pin=True))
        first = await answered_by(yard, "m")
        await yard.yard.catalog.add_version("m", slower(400), who=WHO, match=None)
        await promote(yard, "m", 2, swap=True)
        assert await answered_by(yard, "m") != first
        (version,) = {one.version.key: one.version for one in yard.instances("m")}.values()
        assert version.policy.pin


async def test_a_version_that_is_asked_for_has_no_right_to_stay() -> None:
    async with live_yard({}) as yard:
        await register(yard, "m", fake(pin=True, min_replicas=1))
        await until(lambda: yard.ready("m"))
        await yard.yard.catalog.add_version("m", slower(400), who=WHO, match=None)
        second = await answered_by(yard, "m@2")
        policy = yard.state.versions[second].policy
        assert (policy.pin, policy.min_replicas) == (False, 0)


async def test_what_the_files_tell_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.05)
    source = random_gguf(tmp_path / "f16.gguf")
    async with live_yard({}) as yard:
        await register(yard, "m", {"engine": "llamacpp", "devices": ["ram"], "source": str(source)})
        await yard.driver.fetch(yard.yard.names.model("m"), lambda progress: None)
        catalog = yard.yard.catalog

        def verified() -> bool:
            record = catalog.get("m").record
            return record is not None and record.current.state is VersionState.VERIFIED

        await until(verified)
        (version,) = catalog.versions("m")
        assert "chat" in version.capabilities.features
        (artifact,) = await catalog._registry.artifacts("m", 1)
        assert (artifact.path, artifact.source, artifact.size) == (
            "model",
            str(source),
            source.stat().st_size,
        )
        assert (len(artifact.sha256), artifact.licence) == (64, "apache-2.0")


async def test_a_registry_that_is_begun_anew_beside_copies_of_one_is_told() -> None:
    with short_folder() as folder:
        (folder / "data").mkdir()
        copy = folder / "data" / "registry.db.0001.backup"
        copy.touch()
        with capture_logs() as said:
            async with yard_in(folder, {"a": fake()}):
                pass
            async with yard_in(folder, {"a": fake()}):
                pass
        (told,) = (line for line in said if line["event"] == "registry.new")
        assert (told["log_level"], told["copies"]) == ("warning", [str(copy)])


async def test_a_swap_is_none_where_both_fit() -> None:
    async with live_yard({}) as yard:
        await register(yard, "m", fake())
        await yard.load("m")
        await yard.yard.catalog.add_version("m", slower(400), who=WHO, match=None)
        assert await promote(yard, "m", 2, swap=True) == ["fetching", "loading", "switching"]


async def test_a_source_that_does_not_have_its_file_is_no_model(tmp_path: Path) -> None:
    """What is here is looked at, what is elsewhere is asked for."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0")
    async with live_yard({"a": fake()}) as yard:
        for source, refusal in (
            (str(broken), SpecRefused),
            ("https://127.0.0.1/model.gguf", SourceForbidden),
            ("file:///proc/self/mem", SpecRefused),
        ):
            with pytest.raises(refusal):
                await register(yard, "m", {"engine": "llamacpp", "source": source})
        assert (await yard.yard.catalog._registry.all()).models == ()


async def test_a_version_that_could_never_be_run_is_not_kept() -> None:
    async with live_yard({}) as yard:
        await register(yard, "m", fake())
        with pytest.raises(SpecRefused, match=r"^parameters\.speed: is not an option"):
            await yard.yard.catalog.add_version("m", fake(parameters={"speed": 1}), who=WHO, match=None)
        assert [one.number for one in yard.yard.catalog.versions("m")] == [1]


async def test_policy_changes_at_once_and_in_the_registry_alone() -> None:
    async with live_yard({}) as yard:
        catalog = yard.yard.catalog
        await register(yard, "m", fake(keep_alive="5m", priority="low"))
        instance = await yard.load("m")
        changed = {"keep_alive": "1h", "priority": None, "aliases": ["n"]}
        known = await catalog.set_policy("m", changed, description="new", who=WHO, match=1)
        assert known.record is not None
        assert (known.record.revision, known.record.policy.get("keep_alive")) == (2, "1h")
        assert known.entry.policy.keep_alive == 3600.0
        assert await answered_by(yard, "n") == known.entry.spec.version
        assert yard.ready("m") is instance, "no process was touched"
        history = await catalog.policies("m", before=None, limit=10)
        assert [one.policy.get("keep_alive") for one in history] == ["1h", "5m"]
        with pytest.raises(RevisionMismatch):
            await catalog.set_policy("m", {"pin": True}, description=None, who=WHO, match=1)
        with pytest.raises(SpecRefused, match="pni: is no field of a model; did you mean 'pin'"):
            await catalog.set_policy("m", {"pni": True}, description=None, who=WHO, match=None)
        with pytest.raises(SpecRefused, match="slots: is part of a version"):
            await catalog.set_policy("m", {"slots": 2}, description=None, who=WHO, match=None)
        with pytest.raises(SpecRefused, match="keep_alive"):
            await catalog.set_policy("m", {"keep_alive": "never"}, description=None, who=WHO, match=None)
        assert not yard.yard.catalog.get("m").entry.policy.pin


async def test_names_belong_to_the_file_or_to_the_registry() -> None:
    with short_folder() as folder:
        async with yard_in(folder, {"a": fake(aliases=["x"])}) as yard:
            catalog = yard.yard.catalog
            for name in ("a", "x"):
                with pytest.raises(NameTaken):
                    await register(yard, name, fake())
            with pytest.raises(NameTaken):
                await register(yard, "b", fake(aliases=["x"]))
            with pytest.raises(OwnedByFile, match=r"modelyard\.yaml:\d+"):
                await catalog.remove("a", force=True, who=WHO, match=None)
            await register(yard, "b", fake())
            version = await answered_by(yard, "b")
            path = folder / "modelyard.yaml"
            path.write_text(sections(folder, {"a": fake(), "b": fake()}))
            with pytest.raises(ConfigRefused, match=r"models\.b: 'b' is a name of b, which was registered"):
                await yard.yard.live.apply(None, dry_run=False)
            path.write_text(sections(folder, {"c": fake()}))
            await yard.yard.live.apply(None, dry_run=False)
            assert (await yard.chat("a")).status == 404
            assert await answered_by(yard, "c")
            assert await answered_by(yard, "b") == version, "what was registered stays"


async def test_a_model_that_is_removed_drains_and_is_gone() -> None:
    async with live_yard({"a": fake()}) as yard:
        catalog = yard.yard.catalog
        await register(yard, "m", fake(aliases=["n"]))
        with pytest.raises(AliasInUse, match="asked for as n"):
            await catalog.remove("m", force=False, who=WHO, match=None)
        async with yard.open_stream("m", tokens=20) as (stream, more):
            await anext(more)
            left = await catalog.remove("m", force=True, who=WHO, match=None)
            assert len(left) == 1
            assert (await yard.chat("n")).status == 404
            async for _ in more:
                pass
            assert stream.done
        await asyncio.wait_for(catalog.drained(left), 10.0)
        assert yard.instances("m") == []
        with pytest.raises(ModelNotFound):
            catalog.get("m")
        await register(yard, "m", fake())
        assert await answered_by(yard, "m")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine": "fakee"}, "engine: there is no engine profile"),
        ({"slots": 1}, "engine: is required"),
        ({**fake(), "slotz": 2}, "slotz"),
        ({"engine": "llamacpp", "source": "here.gguf"}, "source: is neither an absolute path"),
        ({"engine": "llamacpp", "source": "/no/such.gguf"}, "source: "),
        ({"engine": "llamacpp", "source": "ftp://a/b.gguf"}, "source: has the unknown scheme"),
        (
            {"engine": "llamacpp", "source": "/x", "parameters": {"extra_args": ["-x"]}},
            "extra_args: says what",
        ),
        (fake(100 * MB), "can never fit"),
    ],
)
async def test_a_model_that_is_wrong_is_refused_and_nothing_is_kept(
    fields: dict[str, Any], said: str
) -> None:
    async with live_yard({"a": fake()}) as yard:
        with pytest.raises(SpecRefused, match=said):
            await register(yard, "m", fields)
        assert (await yard.chat("m")).status == 404
        page, _ = yard.yard.catalog.page(Filter(), None, 10)
        assert [known.name for known in page] == ["a"]
        assert (await yard.yard.catalog._registry.all()).models == ()


async def test_a_registered_text_is_not_filled_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_TESTS", "hunter2")
    async with live_yard({}) as yard:
        await register(
            yard, "m", fake(capabilities=["chat"], aliases=[]) | {"source": "/x/${SECRET_OF_TESTS}"}
        )
        assert yard.yard.catalog.get("m").entry.spec.source == "/x/${SECRET_OF_TESTS}"


async def test_pages_hold_the_file_s_and_the_registry_s_models_in_order() -> None:
    async with live_yard({"b": fake(), "d": fake()}) as yard:
        for name in ("a", "c", "e"):
            await register(yard, name, fake())
        names, after = [], None
        while True:
            page, after = yard.yard.catalog.page(Filter(), after, 2)
            names += [known.name for known in page]
            if after is None:
                break
        assert names == ["a", "b", "c", "d", "e"]
        page, after = yard.yard.catalog.page(Filter(name="C"), None, 10)
        assert ([known.name for known in page], after) == (["c"], None)
        assert yard.yard.catalog.page(Filter(capability="chat"), None, 10)[0]
        assert not yard.yard.catalog.page(Filter(capability="vision"), None, 10)[0]


async def test_digests_that_may_hold_a_secret_outlive_a_restart() -> None:
    secret = {"a": {**fake(), "engine": "own"}}
    engines = {"own": {"type": "fake", "environment": {"HF_TOKEN": "x"}}}
    found = []
    with short_folder() as folder:
        for _ in range(2):
            async with yard_in(folder, secret, engines=engines) as yard:
                found.append(await answered_by(yard, "a"))
    with short_folder() as other:
        async with yard_in(other, secret, engines=engines) as yard:
            found.append(await answered_by(yard, "a"))
    assert found[0] == found[1] != found[2]
