"""What the process is told at its start: the JSON object on its command line. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.servers.process import told

COMPUTE_TYPES = (
    *("auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16"),
    *("float16", "bfloat16", "float32"),
)


@dataclass(frozen=True)
class Parameters:
    """`address` is `unix:/path` or `host:port`, `path` the model: a file that the store made of a folder, or
    a folder for CTranslate2; `model` is what people call it, for those who look at processes. `device` is
    `cpu`, or `cuda` for the visible one with `device_index`. `replicas` compute at once, on the CPU with
    `threads` each (0: see `backends.shared_cores`). The rest is `servers.translation.serving.Options`; 0 is
    its default there."""

    address: str
    path: str
    model: str = ""
    device: str = "cpu"
    device_index: int = 0
    compute_type: str = "auto"
    replicas: int = 0
    threads: int = 0
    beam_size: int = 0
    max_batch_tokens: int = 0
    max_wait_ms: int = -1
    max_output: int = 0
    token_bytes: int = 0


def parse(argv: list[str]) -> Parameters:
    """Raises ValueError that names what is wrong, and TypeError for what is missing."""
    return told(argv, Parameters)
