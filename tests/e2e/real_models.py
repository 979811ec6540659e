"""The three models of examples/demo.yaml, with the file where the tests keep it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from engines.demo_model import demo_gguf

EXAMPLES = Path(__file__).parents[2] / "examples"


def demo_sections() -> dict[str, Any]:
    """`models`, `devices` and `engines` of the demo."""
    demo = yaml.safe_load((EXAMPLES / "demo.yaml").read_text())
    source = str(demo_gguf())
    models = {name: {**model, "source": source} for name, model in demo["models"].items()}
    return {"models": models, "devices": demo["devices"], "engines": demo["engines"]}
