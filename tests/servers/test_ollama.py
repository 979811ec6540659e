"""The store that an Ollama of our own begins with, by a program that tells what it was given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DIGEST = "a" * 64


def run(folder: Path, program: Path) -> subprocess.CompletedProcess[str]:
    given = json.dumps({"program": str(program), "blobs": {f"sha256:{DIGEST}": "/models/m.gguf"}})
    words = [sys.executable, "-m", "modelyard.servers.ollama", given]
    return subprocess.run(words, check=False, cwd=folder, capture_output=True, text=True, timeout=30)


def test_it_becomes_the_program_with_a_store_and_a_home_in_its_folder(tmp_path: Path) -> None:
    program, folder = tmp_path / "ollama", tmp_path / "own"
    program.write_text('#!/bin/sh\necho "$HOME|$OLLAMA_MODELS|$@"\nexit 3\n')
    program.chmod(0o700)
    folder.mkdir()
    done = run(folder, program)
    assert done.returncode == 3
    assert done.stdout == f"{folder}|{folder}|serve\n"
    (link,) = (folder / "blobs").iterdir()
    assert (link.name, str(link.readlink())) == (f"sha256-{DIGEST}", "/models/m.gguf")


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path / "none")
    assert done.returncode == 127
    assert done.stderr == f"{tmp_path / 'none'} cannot be executed: No such file or directory\n"
