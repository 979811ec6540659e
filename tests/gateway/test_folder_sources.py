"""A model whose source is a folder of a repository: registered, shown, served; refused where it cannot be."""

from __future__ import annotations

import pytest

from gateway.live_yard import live_yard
from gateway.test_registry import ask, refused
from modelyard.engines.adapter import Adapter
from modelyard.engines.fake import FakeEngine
from store.hub_server import COMMIT, REPO, hub_server
from store.model_folder import NEEDED, OTHERS


async def test_a_bare_repository_and_an_engine_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "sources", Adapter.sources)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    body = {"source": f"hf://{REPO}", "engine": "fake"}
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for name, content in (NEEDED | OTHERS).items():
            hub.add(name, content)
        async with live_yard({}) as yard:
            made = await ask(yard, "POST", "/v1/models", body, 201)
            assert made["id"] == "model-GGUF"
            told = {
                "architecture": "llama",
                "quantization": "bf16",
                "trained_context": 2048,
                "size": sum(map(len, NEEDED.values())),
            }
            assert told.items() <= made["modelyard"]["files"].items()
            chat = {"model": "model-GGUF", "messages": [{"role": "user", "content": "hello"}]}
            await ask(yard, "POST", "/v1/chat/completions", chat)
            entry = yard.yard.names.resolve("model-GGUF")
            assert entry.files is not None
            assert (entry.files["model"].path / "1_Pooling" / "config.json").is_file()
            for wrong, said in (
                ({"engine": "llamacpp"}, "is a folder, and llamacpp takes a file"),
                ({"quantize": "q8_0"}, "`source` is a folder"),
            ):
                found = await refused(
                    yard, "POST", "/v1/models", {**body, "name": "x", **wrong}, 422, "spec_refused"
                )
                assert said in found["message"]
            hub.add("a.gguf", b"GGUF", repo="tiny/several")
            other = {"source": "hf://tiny/several", "engine": "fake"}
            found = await refused(yard, "POST", "/v1/models", other, 422, "spec_refused")
            assert f"name one: hf://tiny/several@{COMMIT}/a.gguf" in found["message"]
