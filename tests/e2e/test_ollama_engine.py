"""The real Ollama below a yard: what the engines' contract does not say."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e import served
from engines.demo_model import demo_gguf
from gateway.live_yard import LiveYard, live_yard
from launchers.process_table import alive
from modelyard.core.events import DeviceSeen
from modelyard.core.state import Instance
from modelyard.launchers import attached
from waiting import until

PROGRAM = served.ollama_program()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(PROGRAM is None, reason="there is no ollama: run scripts/build-ollama"),
]
NAMES = ("llama2:7b", "llama2:7b-instruct")
ROOM = {"ram": {"memory": "2GB"}}
LOADED = 100_000_000  # bytes that a loaded model takes at least


@asynccontextmanager
async def own(**parameters: Any) -> AsyncIterator[LiveYard]:
    """Two names for the small model, each on an Ollama of its own."""
    assert PROGRAM is not None
    engines = {"own": {"type": "ollama", "program": PROGRAM}}
    given = {"context": 512, "threads": 1, **parameters}
    model = {"engine": "own", "source": str(demo_gguf()), "parameters": given}
    models = dict.fromkeys(NAMES, model)
    async with live_yard(models, engines=engines, devices=ROOM, defaults={"max_wait": "4m"}) as yard:
        yard.http.timeout = httpx.Timeout(240)
        yield yard


async def said(yard: LiveYard, model: str, prompt: str = "Say yes.") -> str:
    answer = await yard.chat(model, prompt, tokens=4, temperature=0)
    assert answer.status == 200, answer.body
    assert answer.text
    return answer.text


async def test_each_model_has_a_server_and_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the user's own store and key are left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(demo_gguf().parents[1]))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    async with own() as yard:
        texts = [await said(yard, name) for name in NAMES]
        assert texts[0] == texts[1]
        folders = {os.readlink(f"/proc/{yard.pids(name)[0]}/cwd") for name in NAMES}
        assert len(folders) == len(NAMES)
        for folder in folders:
            links = [file for file in Path(folder, "blobs").iterdir() if file.is_symlink()]
            assert [link.resolve() for link in links] == [demo_gguf().resolve()], "the file is not copied"
        tree = [pid for name in NAMES for pid in yard.pids(name)]
        assert len(tree) == 6  # the shim, ollama and its runner, twice
        for name in NAMES:
            await yard.unload(name)
        await until(lambda: not yard.state.instances)
        assert not any(alive(pid) for pid in tree)
        assert not any(Path(folder).exists() for folder in folders)
    assert not {"models", ".ollama"} & {file.name for file in tmp_path.iterdir()}


async def test_a_runner_that_is_killed_ends_its_stream_and_nothing_else() -> None:
    """Ollama starts another by itself: the instance stays."""
    async with own() as yard:
        name = NAMES[0]
        text = await said(yard, name)
        first = yard.ready(name)
        runner = next(
            pid for pid in yard.pids(name) if b"runner" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        async with yard.open_stream(name, "Count to a thousand.", tokens=400) as (stream, read_on):
            while not stream.text:
                await anext(read_on)
            os.kill(runner, signal.SIGKILL)
            async for _ in read_on:
                pass
        assert stream.code == "engine_died", "Ollama itself ends it in good order"

        assert await said(yard, name) == text
        assert not alive(runner)
        assert yard.ready(name) is first


async def test_template_system_and_settings_are_ollamas() -> None:
    template = "{{ .System }} {{ .Prompt }}"
    settings = {"stop": [","], "temperature": 0}
    async with own(template=template, system="The capital of France is", settings=settings) as yard:
        answer = await yard.chat(NAMES[0], "the city of", tokens=32)
        assert "Paris" in answer.text
        assert answer.body["choices"][0]["finish_reason"] == "stop"
        assert answer.body["usage"]["prompt_tokens"] < 12, "no marks of a chat"


async def test_a_template_that_is_none_is_said_with_its_path() -> None:
    async with own(template="{{ .Prompt") as yard:
        answer = await yard.chat(NAMES[0])
        assert (answer.status, answer.code) == (503, "cannot_load")
        assert "bad_arguments: parameters.template was answered with 400" in answer.message


async def test_too_little_memory_is_said_as_that() -> None:
    """Ollama looks at what the machine has before it loads, and lives on."""
    async with own() as yard:
        await yard.unload((await yard.load(NAMES[0])).version.spec.model)  # what it takes is known
        await until(lambda: not yard.state.instances)
        entry = next(entry for entry in yard.driver.entries.values() if entry.spec.model == NAMES[0])
        entry.spec = replace(entry.spec, slots=20_000, parameters={**entry.spec.parameters, "context": 8192})
        answer = await yard.chat(NAMES[0])
        assert answer.status == 503
        assert "out_of_memory" in answer.message
        assert "more system memory" in answer.message


class There:
    """An Ollama that runs already, with the two models and a third that is nobody's business."""

    def __init__(self, url: str) -> None:
        self.url = url

    def loaded(self) -> dict[str, int]:
        listed = httpx.get(f"{self.url}/api/ps", timeout=10).json()["models"]
        return {model["name"]: model["size"] for model in listed}

    def keep(self, name: str, keep_alive: int) -> None:
        body = {"model": name, "keep_alive": keep_alive}
        httpx.post(f"{self.url}/api/generate", json=body, timeout=60).raise_for_status()


@contextmanager
def there(folder: Path) -> Iterator[There]:
    assert PROGRAM is not None
    with served.ollama(PROGRAM, folder / "models", folder / "home", {"OLLAMA_CONTEXT_LENGTH": "512"}) as url:
        for name in (*NAMES, "other"):
            served.create(url, folder / "models", name, demo_gguf())
        yield There(url)


@asynccontextmanager
async def beside(url: str) -> AsyncIterator[LiveYard]:
    engines = {"there": {"type": "ollama", "defaults": {"url": url}}}
    models = {name: {"engine": "there"} for name in NAMES}
    async with live_yard(models, engines=engines, devices=ROOM, defaults={"max_wait": "4m"}) as yard:
        yard.http.timeout = httpx.Timeout(240)
        yield yard


def held(yard: LiveYard, instance: Instance) -> int:
    """Observed bytes of its own in host memory."""
    return yard.state.ledger.devices["ram"].holds(instance.id)[1]


async def test_attached_a_model_is_loaded_counted_and_unloaded(tmp_path: Path) -> None:
    with there(tmp_path) as ollama:
        async with beside(ollama.url) as yard:
            assert ollama.loaded() == {}
            instance = await yard.load(NAMES[0])
            (size,) = ollama.loaded().values()
            await until(lambda: held(yard, instance) == size > LOADED)
            await said(yard, NAMES[0])
            await yard.unload(NAMES[0])
            await until(lambda: not yard.state.instances)
            await until(lambda: ollama.loaded() == {})
            again = await yard.load(NAMES[0])
            (charge,) = again.placement
            assert charge.bytes == pytest.approx(size, rel=0.16), "what was learned is reserved"
        await until(lambda: ollama.loaded() == {})


async def test_attached_what_others_load_there_is_foreign(tmp_path: Path) -> None:
    with there(tmp_path) as ollama:
        async with beside(ollama.url) as yard:
            instance = await yard.load(NAMES[0])
            own = held(yard, instance)
            ollama.keep("other", -1)
            assert len(ollama.loaded()) == 2
            (ram,) = (seen for seen in await yard.driver.observer._look() if seen.device == "ram")
            assert ram.ours == {instance.id: own}
            yard.driver.post(DeviceSeen(ram.device, ram.total, ram.free, ram.ours))
            assert yard.state.ledger.devices["ram"].foreign == ram.total - ram.free - own
            await yard.unload(NAMES[0])
            await until(lambda: list(ollama.loaded()) == ["other:latest"])


async def test_attached_a_model_that_somebody_unloads_is_loaded_again_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "EVERY", 0.05)
    with there(tmp_path) as ollama:
        async with beside(ollama.url) as yard:
            text = await said(yard, NAMES[0])
            first = yard.ready(NAMES[0])
            ollama.keep(NAMES[0], 0)
            await until(lambda: yard.ready(NAMES[0]) is not first)
            assert any("has put the model out of its memory" in note for note in yard.notes("failed"))
            assert await said(yard, NAMES[0]) == text
            assert list(ollama.loaded()) == [NAMES[0]]


async def test_attached_a_server_that_is_gone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "EVERY", 0.05)
    monkeypatch.setattr(attached, "AGAIN", 0.05)
    with ExitStack() as stack:
        ollama = stack.enter_context(there(tmp_path))
        async with beside(ollama.url) as yard:
            await said(yard, NAMES[0])
            stack.close()
            await until(lambda: yard.ready(NAMES[0]) is None)
            assert any("what it was attached to is gone" in note for note in yard.notes("failed"))
            answer = await yard.chat(NAMES[0])
            assert answer.status == 503
            assert "cannot connect" in answer.message
