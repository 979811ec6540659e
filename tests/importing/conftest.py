"""A folder with a small GGUF, and a PATH on which there is a llama-server, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.gguf_file import gguf

LLAMA = {"general.architecture": "llama", "llama.block_count": 1}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that reads as a model for llama.cpp."""
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(LLAMA, [("blk.0.attn_q.weight", [4, 4], 0)]))
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which llama-server is on PATH."""
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return {"PATH": str(program.parent), "HOME": str(tmp_path)}
