"""Models as they are run on this machine: what is found on PATH counts from the beginning."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from modelyard.compose.entries import entries_of
from modelyard.config import ConfigErrors, load
from modelyard.engines.fake import FakeEngine
from modelyard.engines.llamacpp import LlamaCppEngine
from modelyard.runtime.devices import Devices
from modelyard.store import Store

TEXT = "models: {{m: {{engine: llamacpp, source: {file}, parameters: {{extra_args: [--temp, '1']}}}}}}"


def test_arguments_for_a_program_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, program = tmp_path / "m.gguf", tmp_path / "bin" / "llama-server"
    file.touch()
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent))
    config = load(None, TEXT.format(file=file))
    devices, store = Devices.discover({}, {}), Store(tmp_path / "store")
    try:
        with pytest.raises(ConfigErrors, match="not on PATH"):
            entries_of(config, config.models, devices, store)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        entry = entries_of(config, config.models, devices, store)["m"]
        assert entry.profile.found["llama-server"] == str(program)
    finally:
        store.close()
        devices.close()


def test_an_engine_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(LlamaCppEngine, "modules", ())
    config = load(None, f"models: {{m: {{engine: llamacpp, source: {file}}}}}")
    devices, store = Devices.discover({}, {}), Store(tmp_path / "store")
    try:
        with pytest.raises(ConfigErrors, match=r"models\.m\.engine: llamacpp is not installed.*pip install"):
            entries_of(config, config.models, devices, store)
    finally:
        store.close()
        devices.close()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("engine: fake, parallel: {tensor: 3}", ""),
        (
            "engine: fake, parallel: {tensor: 2, pipeline: 2}, devices: [gpu0, gpu1, gpu2]",
            "parallel: takes 4 dev",
        ),
        ("engine: fake, parallel: {pipeline: 2}, devices: [ram]", "it may use none"),
        ("engine: single, parallel: {tensor: 2}", r"m\.parallel\.tensor: the engine single cannot"),
    ],
)
def test_parallelism_needs_an_engine_that_can_and_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    class Single(FakeEngine):
        type = "single"
        parallel = frozenset({"pipeline"})

    monkeypatch.setattr("modelyard.engines.registry.load", lambda: {"fake": FakeEngine(), "single": Single()})
    gpus = ", ".join(f"gpu{n}: {{kind: declared, memory: 1MB}}" for n in range(3))
    text = f"devices: {{{gpus}}}\nmodels: {{m: {{{model}}}}}"
    config = load(None, text, engine_types=["fake", "single"])
    devices, store = Devices.discover(config.devices, {}), Store(tmp_path / "store")
    try:
        with pytest.raises(ConfigErrors, match=message) if message else nullcontext():
            entries_of(config, config.models, devices, store)
    finally:
        store.close()
        devices.close()


def test_a_program_that_cannot_be_run_is_told_once_with_its_place(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    text = f"""
engines: {{own: {{type: fake, program: {program}}}, other: {{type: fake, program: no-such-engine}}}}
models: {{a: {{engine: own}}, b: {{engine: own}}, c: {{engine: other}}}}
"""
    config = load(None, text)
    devices, store = Devices.discover({}, {}), Store(tmp_path / "store")
    try:
        with pytest.raises(ConfigErrors) as absent:
            entries_of(config, config.models, devices, store)
        first, second = absent.value.problems
        assert first.path == "engines.own.program"
        assert f"there is no {program}" in first.message
        assert (second.path, second.message.split(";")[0]) == (
            "engines.other.program",
            "there is no no-such-engine on PATH",
        )
        program.write_text("#!/bin/sh\n")
        with pytest.raises(ConfigErrors, match="is not a file that this user may execute"):
            entries_of(config, config.models, devices, store)
        program.chmod(0o755)
        assert set(entries_of(config, config.models[:2], devices, store)) == {"a", "b"}
    finally:
        store.close()
        devices.close()


@pytest.mark.parametrize(
    ("model", "devices"),
    [
        ("engine: own", ("gpu0",)),
        ("engine: fake", ()),
        ("engine: fake, devices: [gpu0]", "gpu0 is for the models of the engine profile 'own' alone"),
    ],
)
def test_an_exclusive_device_is_for_its_models_alone(
    tmp_path: Path, model: str, devices: tuple[str, ...] | str
) -> None:
    text = (
        "devices: {gpu0: {kind: declared, memory: 1MB}, gpu1: {kind: declared, memory: 1MB}}\n"
        "engines: {own: {type: fake, devices: [gpu0], exclusive: true}}\n"
        f"models: {{m: {{{model}}}}}"
    )
    config = load(None, text, engine_types=["fake"])
    found, store = Devices.discover(config.all_devices, {}), Store(tmp_path / "store")
    try:
        if isinstance(devices, str):
            with pytest.raises(ConfigErrors, match=devices):
                entries_of(config, config.models, found, store)
        else:
            assert entries_of(config, config.models, found, store)["m"].spec.devices == devices
    finally:
        store.close()
        found.close()


def test_who_has_no_accelerator_left_is_run_in_host_memory(tmp_path: Path) -> None:
    text = (
        "devices: {gpu0: {kind: declared, memory: 1MB}}\n"
        "engines: {own: {type: fake, devices: [gpu0], exclusive: true}}\n"
        "models: {m: {engine: fake}}"
    )
    config = load(None, text, engine_types=["fake"])
    found, store = Devices.discover(config.all_devices, {}), Store(tmp_path / "store")
    try:
        assert entries_of(config, config.models, found, store)["m"].spec.devices == ("ram",)
    finally:
        store.close()
        found.close()
