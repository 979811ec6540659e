"""Models as they are run on this machine: what is found on PATH counts from the beginning."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.compose.entries import entries_of
from modelyard.config import ConfigErrors, load
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
