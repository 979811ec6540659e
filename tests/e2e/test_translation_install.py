"""What the README says of translation without a server, in an environment that has nothing else: installed
from a wheel with the extra, run as it is written there, but with a model that lies in this repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from test_documents import blocks

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "translation" / "models" / "m2m100"
NAME = '"facebook/m2m100_418M"'
TEXTS = {
    '"The train is late.\\n\\nWe wait."': '"the red house is old.\\n\\nthree dogs"',
    '"It rains today.", "Il pleut aujourd\'hui."': '"the small house", "la petite maison"',
}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def run(*argv: object, **environ: str) -> str:
    found = subprocess.run(
        [*map(str, argv)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return found.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with `modelyard[translation]`."""
    root = tmp_path_factory.mktemp("install")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", root, ROOT)
    (wheel,) = root.glob("modelyard-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", root / "venv")
    python = root / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", f"{wheel}[translation]")
    return python


def test_the_ten_lines_of_the_readme(python: Path, tmp_path: Path) -> None:
    (program,) = (block for block in blocks(ROOT / "README.md", "python") if "Translator" in block)
    assert len(program.strip().splitlines()) <= 10
    for before, after in {NAME: f'"{MODEL}"', **TEXTS}.items():
        assert before in program
        program = program.replace(before, after)
    said = run(python, "-c", program, XDG_DATA_HOME=str(tmp_path))
    french, german = "la maison rouge est vieille.\n\ntrois chiens\n", "das kleine Haus\ndas kleine Haus\n"
    assert said == f"{french}{german}100 languages on cpu\n"


def test_neither_pytorch_nor_transformers_is_there(python: Path) -> None:
    code = (
        "from importlib.util import find_spec; print([n for n in ('torch', 'transformers') if find_spec(n)])"
    )
    assert run(python, "-c", code) == "[]\n"
