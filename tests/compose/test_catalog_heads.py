"""What registering a model tells of files that are elsewhere, how long it is known, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compose.test_catalog import register, yard_in
from engines.gguf_file import gguf
from engines.gguf_parts import split_gguf
from gateway.live_yard import LiveYard, live_yard, short_folder
from modelyard.errors import BadFile, BadGguf, DownloadFailed, SourceNotFound, SpecRefused
from modelyard.gateway.capabilities import known_of
from modelyard.registry import VersionState
from modelyard.registry.records import FileFacts
from store.hub_server import REPO, Hub, hub_server
from store.test_quantize import random_gguf
from store.wheels import write_wheel
from waiting import until

FIELDS: Mapping[str, object] = {
    "general.architecture": "llama",
    "general.file_type": 15,
    "general.license": "mit",
    "llama.context_length": 2048,
    "llama.block_count": 1,
}
CONTENT = gguf(FIELDS, [("token_embd.weight", (64, 3), 0)])
FACTS = FileFacts(len(CONTENT), "llama", "q4_k_m", 2048, "mit")
NAME = "Chat.gguf"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        hub.add(NAME, CONTENT)
        yield hub


def llama(**fields: Any) -> dict[str, Any]:
    return {"engine": "llamacpp", "devices": ["ram"], "source": f"hf://{REPO}/{NAME}", **fields}


async def told(yard: LiveYard, name: str = "m") -> dict[str, Any]:
    """What `GET /v1/models/{name}` shows."""
    ours: dict[str, Any] = (await yard.http.get(f"/v1/models/{name}")).json()["modelyard"]
    return ours


async def test_what_a_header_tells_is_kept(hub: Hub) -> None:
    with short_folder() as folder:
        async with yard_in(folder, {}) as yard:
            await register(yard, "m", llama())
            known = yard.yard.catalog.get("m")
            assert known.entry.files is None, "nothing was fetched"
            first = await told(yard)
            assert first["capabilities"] == ["chat", "completion"]
            assert first["context"] == 2048
            shown = (await yard.http.post("/api/show", json={"model": "m"})).json()
            assert shown["parameters"] == "num_ctx 2048"
            assert first["files"] == {
                "size": len(CONTENT),
                "architecture": "llama",
                "quantization": "q4_k_m",
                "trained_context": 2048,
                "licence": "mit",
            }
        async with yard_in(folder, {}) as yard:
            assert await told(yard) == first
            versions = (await yard.http.get("/v1/models/m/versions")).json()["data"]
            assert versions[0]["capabilities"]["files"] == first["files"]
            assert versions[0]["state"] == "registered"
            hub.repos.clear()
            added, _ = await yard.yard.catalog.add_version("m", {"engine": "fake"}, who="me", match=None)
            assert added.capabilities.files is None


async def test_files_that_are_here_tell_the_same(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard.compose.upkeep.LOOK_EVERY", 0.05)
    async with live_yard({}) as yard:
        await register(yard, "m", llama())
        catalog = yard.yard.catalog
        registered = catalog.get("m")
        assert registered.record is not None
        assert registered.record.current.capabilities.files == FACTS
        await yard.yard.driver.files.fetch(registered.entry, lambda step: None)
        await catalog.remove("m", force=False, who="me", match=None)
        await register(yard, "m", llama())
        await until(lambda: state_of(yard) is VersionState.VERIFIED)
        now = catalog.get("m")
        assert now.entry.files is not None
        assert now.record is not None
        assert now.record.current.capabilities == registered.record.current.capabilities == known_of(now)


async def test_a_model_in_several_files(hub: Hub, tmp_path: Path) -> None:
    parts = split_gguf(random_gguf(tmp_path / "whole.gguf"), tmp_path, 3)
    for path in parts[:2]:
        hub.add(path.name, path.read_bytes())
    async with live_yard({}) as yard:
        fields = llama(source=f"hf://{REPO}/{parts[0].name}")
        with pytest.raises(SourceNotFound, match=r"has no file model-00003-of-00003\.gguf"):
            await register(yard, "m", fields)
        hub.add(parts[2].name, parts[1].read_bytes())
        with pytest.raises(BadGguf, match=r"model-00003-of-00003\.gguf is expected to be part 3 of 3"):
            await register(yard, "m", fields)
        hub.add(parts[2].name, parts[2].read_bytes())
        await register(yard, "m", fields)
        before = (await told(yard))["files"]
        assert before["size"] == sum(path.stat().st_size for path in parts)
        assert before["architecture"] == "llama"
        entry, driver = yard.yard.catalog.get("m").entry, yard.yard.driver
        await driver.fetch(entry, lambda step: None)
        assert (await told(yard))["files"] == before
        assert entry.files is not None
        assert not driver.kept_files()
        entry.policy = replace(entry.policy, pin=True)
        assert driver.kept_files() == list(entry.files["model"].paths)
        driver.lose(entry.files["model"].paths[2])
        assert entry.files is None


def state_of(yard: LiveYard) -> VersionState | None:
    record = yard.yard.catalog.get("m").record
    return record.current.state if record is not None else None


async def test_each_version_tells_its_own(hub: Hub) -> None:
    async with live_yard({}) as yard:
        await register(yard, "m", llama())
        other = llama(parameters={"context": 77, "embedding": True})
        await yard.yard.catalog.add_version("m", other, who="me", match=None)
        for name, context, can in (("m", 2048, ["chat", "completion"]), ("m@2", 77, ["embedding"])):
            shown = await told(yard, name)
            assert (shown["context"], shown["capabilities"]) == (context, can)


async def test_a_publishers_licence_comes_first(hub: Hub) -> None:
    hub.repos[REPO].card = {"license": "apache-2.0"}
    async with live_yard({}) as yard:
        await register(yard, "m", llama())
        assert (await told(yard))["files"]["licence"] == "apache-2.0"


async def test_what_a_request_may_take_is_what_the_engine_gives(hub: Hub) -> None:
    hub.add(NAME, gguf({**FIELDS, "llama.context_length": 100_000}))
    async with live_yard({}) as yard:
        for name, context, right in (("m", None, 4096), ("n", 512, 512), ("o", 0, 100_000)):
            parameters = {} if context is None else {"context": context}
            await register(yard, name, llama(parameters=parameters))
            shown = await told(yard, name)
            assert (shown["context"], shown["files"]["trained_context"]) == (right, 100_000)


@pytest.mark.parametrize(
    ("pooling", "parameters", "capability"),
    [(1, {"embedding": True}, "embedding"), (4, {"rerank": True}, "rerank")],
)
async def test_a_bare_source_is_run_as_what_it_is(
    hub: Hub, pooling: int, parameters: dict[str, bool], capability: str
) -> None:
    hub.add(NAME, gguf({**FIELDS, "llama.pooling_type": pooling}))
    async with live_yard({}) as yard:
        made = await yard.http.post("/v1/models", json={"source": f"hf://{REPO}/{NAME}"})
        assert made.status_code == 201, made.text
        assert made.json()["spec"]["parameters"] == parameters
        assert made.json()["modelyard"]["capabilities"] == [capability]
        assert len(hub.requests("GET", cdn=True)) == 1, "its header was read once"
        await register(yard, "m", llama(parameters={"context": 64}))
        assert (await told(yard))["capabilities"] == ["chat", "completion"], "it was said how to run it"


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"<html>Sign in", BadFile, "an HTML or XML page"),
        (b"\x80\x04]\x94.", BadFile, "a pickle"),
        (CONTENT[:-700], BadGguf, "are missing; fetch it again"),
        (CONTENT[:30], BadGguf, "more than the file can hold"),
    ],
)
async def test_what_is_no_model_is_not_registered(
    hub: Hub, content: bytes, error: type[Exception], said: str
) -> None:
    async with live_yard({}) as yard:
        for name in ("m", "n"):  # by the hub's own metadata; from its second address
            hub.add(NAME, content)
            with pytest.raises(error, match=said):
                await register(yard, name, llama())
        refused = await yard.http.post("/v1/models", json={"name": "m", **llama()})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "source")
        assert said.rpartition(";")[0] in refused.json()["error"]["message"]
        assert (await yard.http.get("/v1/models")).json()["data"] == []


async def test_files_of_this_machine_tell_too(tmp_path: Path) -> None:
    whole, page, adapter = (tmp_path / name for name in ("whole.gguf", "page.gguf", "adapter.gguf"))
    whole.write_bytes(CONTENT)
    page.write_text("<html>")
    adapter.write_bytes(gguf({"general.architecture": "llama"}))
    async with live_yard({}) as yard:
        lora = [{"source": str(adapter)}]
        await register(yard, "m", llama(source=str(whole), parameters={"lora": lora}))
        files = (await told(yard))["files"]
        assert files["size"] == len(CONTENT) + adapter.stat().st_size
        assert (files["quantization"], files["licence"]) == ("q4_k_m", "mit")
        with pytest.raises(SpecRefused, match=r"page\.gguf is not a GGUF file"):
            await register(yard, "n", llama(source=str(page)))


async def test_what_was_told_outlives_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard.compose.upkeep.LOOK_EVERY", 0.05)
    path = tmp_path / "whole.gguf"
    path.write_bytes(CONTENT)
    with short_folder() as folder:
        async with yard_in(folder, {}) as yard:
            await register(yard, "m", llama(source=str(path)))
            before = await told(yard)
        path.write_text("<html>")
        async with yard_in(folder, {}) as yard:
            await until(lambda: state_of(yard) is VersionState.FAILED)
            now = await told(yard)
            assert (now["files"], now["context"]) == (before["files"], before["context"])


async def test_every_file_of_a_model_is_looked_at(hub: Hub) -> None:
    hub.add("adapter.gguf", b"<html>")
    async with live_yard({}) as yard:
        lora = [{"source": f"hf://{REPO}/adapter.gguf"}]
        with pytest.raises(BadFile, match=r"adapter\.gguf: this is an HTML or XML page"):
            await register(yard, "m", llama(parameters={"lora": lora}))


async def test_a_header_of_a_stranger(hub: Hub) -> None:
    """Its words are shown where they are words, and its numbers where they are tokens."""
    odd = {"general.architecture": "x\0y", "general.license": "a\nb", "x\0y.context_length": 5}
    hub.add(NAME, gguf({**odd, "general.file_type": 4_000_000_000}))
    async with live_yard({}) as yard:
        await register(yard, "m", llama())
        assert (await told(yard))["files"] == {
            "size": len(gguf({**odd, "general.file_type": 1})),
            "architecture": "",
            "quantization": "",
            "trained_context": 5,
            "licence": "a",
        }


async def test_a_version_that_is_quantized_here_has_no_size_yet(hub: Hub) -> None:
    async with live_yard({}) as yard:
        await register(yard, "m", llama(quantize="q8_0"))
        files = (await told(yard))["files"]
        assert (files["size"], files["quantization"], files["architecture"]) == (None, "q8_0", "llama")


async def test_a_wheel_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    write_wheel(tmp_path, "tiny_model", "1.0", {"tiny_model/a.gguf": CONTENT})
    async with live_yard({}) as yard:
        await register(yard, "m", llama(source="pypi://tiny-model==1.0/tiny_model/a.gguf"))
        assert (await told(yard))["files"]["size"] is None
        with pytest.raises(SourceNotFound, match=r"pip finds no wheel of tiny-model==2\.0"):
            await register(yard, "n", llama(source="pypi://tiny-model==2.0/tiny_model/a.gguf"))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        monkeypatch.setenv("PIP_RETRIES", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(DownloadFailed, match=r"pip could not download tiny-model==3\.0"):
            await register(yard, "n", llama(source="pypi://tiny-model==3.0/tiny_model/a.gguf"))
