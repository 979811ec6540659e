"""A command line of the user's own: it has the llama.cpp wheel serve on a Unix socket."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from e2e.engines.stand import CHAT, VECTORS, Stand
from engines.demo_model import demo_gguf


class Command(Stand):
    name = "command"

    def absent(self) -> str:
        return "" if find_spec("xllamacpp") else "the Python package xllamacpp is not installed"

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        model = {"engine": "own", "source": str(demo_gguf())}
        embedding = {"embedding": True, "pooling_type": "LLAMA_POOLING_TYPE_MEAN"}
        vectors = {"context": 512, "apis": ["embeddings"], "arguments": _arguments(slots=1, **embedding)}
        yield {
            "devices": {"ram": {"memory": "2GB"}},
            "engines": {"own": {"type": "command", "program": sys.executable}},
            "models": {
                CHAT: {
                    **model,
                    "slots": self.slots,
                    "parameters": {
                        "context": 2048,
                        "socket": True,
                        "memory": {"ram": "400MB"},
                        "arguments": _arguments(slots=self.slots),
                    },
                },
                VECTORS: {**model, "parameters": {**vectors, "socket": True}},
            },
        }


def _arguments(slots: int, **more: object) -> list[str]:
    parameters = {
        "model.path": "{source}",
        "model_alias": ["{model}"],
        "hostnames": ["{socket}"],
        "n_ctx": 2048 * slots,
        "n_parallel": slots,
        "n_gpu_layers": 0,
        "load_mode": "LLAMA_LOAD_MODE_NONE",
        "cache_ram_mib": 0,
        "fit_params": False,
        "cpuparams.n_threads": 1,
        **more,
    }
    return ["-m", "modelyard.servers.llamacpp", json.dumps(parameters)]


STAND = Command()
