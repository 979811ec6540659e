"""Servers that the adapter `command` knows by name: the program of each, how to get it, and its parameters.

Their flags are held against written-down command lines alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """`program` is looked up on PATH, `get` says how to have it there; `parameters` as in a model. `parallel`
    says whether one instance may take several accelerators, `own_folder` that it leaves files behind."""

    program: str
    get: str
    parameters: Mapping[str, object]
    parallel: bool = True
    own_folder: bool = False


PRESETS: Mapping[str, Preset] = {
    "sglang": Preset(
        "sglang",
        "run `pip install sglang`, or name the program of its environment as the profile's `program`",
        {
            "arguments": [
                *("serve", "--model-path", "{source}", "--served-model-name", "{model}"),
                *("--host", "{host}", "--port", "{port}", "--max-running-requests", "{slots}"),
                ["--context-length", "{context}"],
                ["--tp-size", "{device_count}"],
            ],
            "apis": ["chat", "completions"],
        },
    ),
    "tgi": Preset(
        "text-generation-launcher",
        "build text-generation-inference, or name a script that runs its image as the profile's `program`",
        {
            "arguments": [
                *("--model-id", "{source}", "--hostname", "{host}", "--port", "{port}"),
                *("--max-concurrent-requests", "{slots}", "--usage-stats", "off"),
                # It meets its shard there; gRPC takes absolute paths alone, so this is its own folder's.
                *("--num-shard", "1", "--shard-uds-path", "/proc/self/cwd/shard"),
                ["--max-total-tokens", "{context}"],
            ],
            "apis": ["chat", "completions"],
        },
        parallel=False,  # its shards would need a second free port, and know one for every instance
        own_folder=True,
    ),
    "openvino": Preset(
        "ovms",
        "install OpenVINO Model Server 2026.4 or newer (before, its API was below /v3)",
        {
            "arguments": [
                *("--model_name", "{model}", "--model_path", "{source}"),
                *("--rest_bind_address", "{host}", "--rest_port", "{port}"),
            ],
            "health": "/v2/health/ready",
            "apis": ["chat"],
        },
    ),
    "llamafile": Preset(
        "llamafile",
        "put llamafile 0.10 or newer there",
        {
            "arguments": [
                *("--server", "--model", "{source}", "--alias", "{model}"),
                *("--host", "{host}", "--port", "{port}", "--parallel", "{slots}"),
                ["--ctx-size", "{total_context}"],
            ],
            "apis": ["chat", "completions"],
        },
    ),
}
