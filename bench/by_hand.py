"""What a careful script does without Modelyard: stop one engine, start the other, poll it, ask it.

Used by swap.py, which compares Modelyard with it. The engines are the very same commands: they come from the
same configuration through the same adapters. One engine runs at a time.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import httpx

from modelyard.config import Config, Model
from modelyard.core.types import Address, Charge
from modelyard.engines import gguf, registry
from modelyard.engines.base import Command, Files, ModelFile

POLL = 0.005  # as often as Modelyard: the comparison is not one of patience
START_DEADLINE = 60.0
STOP_DEADLINE = 20.0


class ByHand:
    """Owns the engine that runs now. `close` stops it."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._models = {model.spec.model: model for model in config.models}
        self._engines = registry.load()
        # A script has its command lines written down: what they need is read before anything is timed.
        self._files = {name: _files(model) for name, model in self._models.items()}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def swap(self, name: str) -> httpx.Client:
        """Have the model `name` run and no other; returns a client once it generated a token."""
        self.close()
        model = self._models[name]
        engine = self._engines[self._config.profiles[model.spec.engine].type]
        self._starts += 1
        address = Address(path=str(self._folder / f"{self._starts}.sock"))
        self._start(model, address)
        client = httpx.Client(
            # Without certificates: loading them takes longer than all polls together.
            transport=httpx.HTTPTransport(uds=address.path, verify=False, trust_env=False),
            trust_env=False,
            base_url="http://engine",
            timeout=START_DEADLINE,
        )
        self._until_healthy(client, engine.health)
        for call in engine.warm_up(model.spec):
            client.request(
                call.method, call.path, content=call.body, headers={"content-type": "application/json"}
            ).raise_for_status()
        return client

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_DEADLINE)
            self._process = None

    def _start(self, model: Model, address: Address) -> None:
        profile = self._config.profiles[model.spec.engine]
        engine, files = self._engines[profile.type], self._files[model.spec.model]
        need = engine.need(model.spec, files)
        placement = (Charge("ram", need.bytes),)
        command = engine.command(model.spec, profile, placement, address, files)
        assert isinstance(command, Command)
        self._process = subprocess.Popen(
            command.argv,
            env={**os.environ, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _until_healthy(self, client: httpx.Client, path: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_DEADLINE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if client.get(path).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL)
        raise RuntimeError(f"the engine did not become healthy: {self._process.args!r}")


def _files(model: Model) -> Files:
    if not model.spec.source:
        return {}
    path = Path(model.spec.source)
    return {"model": ModelFile(path, path.stat().st_size, header=gguf.facts(gguf.read_header(path)))}
