"""A server elsewhere: llama.cpp's, which wants a key."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from e2e.engines.stand import CHAT, VECTORS, Stand
from engines.demo_model import demo_gguf

KEY = "sk-elsewhere"


class OpenAi(Stand):
    name = "openai"
    local = False

    def absent(self) -> str:
        return "" if find_spec("xllamacpp") else "the Python package xllamacpp is not installed"

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        embedding = {"embedding": True, "pooling_type": "LLAMA_POOLING_TYPE_MEAN"}
        with ExitStack() as stack:
            chat = stack.enter_context(elsewhere(CHAT, self.slots))
            vectors = stack.enter_context(elsewhere("theirs", 1, **embedding))
            here = {"url": f"{chat}/v1", "key": KEY, "context": 2048}
            there = {"url": vectors, "key": KEY, "model": "theirs", "apis": ["embeddings"]}
            model: dict[str, Any] = {"engine": "openai", "slots": self.slots}
            yield {"models": {CHAT: {**model, "parameters": here}, VECTORS: {**model, "parameters": there}}}


@contextmanager
def elsewhere(name: str, slots: int, **more: object) -> Iterator[str]:
    """A server that is not ours; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parameters = {
        "model.path": str(demo_gguf()),
        "model_alias": [name],
        "hostnames": ["127.0.0.1"],
        "port": port,
        "api_keys": [KEY],
        "n_ctx": 2048 * slots,
        "n_parallel": slots,
        "cpuparams.n_threads": 1,
        **more,
    }
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "modelyard.servers.llamacpp", json.dumps(parameters)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(url)
            yield url
        finally:
            process.kill()


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError(f"{url} did not come up")


STAND = OpenAi()
