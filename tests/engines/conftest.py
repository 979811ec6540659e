"""Fixtures of the engines' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.demo_model import demo_gguf


@pytest.fixture(scope="session")
def gguf() -> Path:
    """A real, small GGUF file."""
    return demo_gguf()
