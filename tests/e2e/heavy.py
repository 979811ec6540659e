"""The environment of engines that take minutes to install, as `scripts/engines-env` makes it."""

from __future__ import annotations

from pathlib import Path

ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "engines"
PYTHON = ENVIRONMENT / "bin" / "python"
VLLM = ENVIRONMENT / "bin" / "vllm"
MODEL = ENVIRONMENT / "smollm2"
"""SmolLM2-135M-Instruct as a folder of safetensors."""


def absent(program: Path) -> str:
    """Why this program cannot be run on the model, and what to do about it; empty when it can."""
    for path in (program, MODEL / "model.safetensors"):
        if not path.exists():
            return f"there is no {path}: run scripts/engines-env"
    return ""
