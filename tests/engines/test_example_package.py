"""The example of a third party's engine: built, installed and run as a user does, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cli.command_line import run
from gateway.live_yard import child_yard, short_folder
from waiting import until

PACKAGE = Path(__file__).parents[2] / "examples" / "engine-package"
MODEL = {"engine": "echo", "slots": 2, "parameters": {"times": 2}}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, beside what is installed."""
    assert find_spec("hatchling"), "the package is built with hatchling: `make dev` installs it"
    folder = tmp_path_factory.mktemp("packages")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    done = subprocess.run(
        [*pip, "--target", str(folder), str(PACKAGE)],
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_it_is_listed(installed: Path) -> None:
    done = run("engines", "--json", PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    rows = {row["engine"]: row for row in json.loads(done.stdout)}
    assert rows["echo"] == {"engine": "echo", "verified": "real", "missing": ""}


async def test_it_serves(installed: Path) -> None:
    with short_folder() as folder:
        here = {"PYTHONPATH": str(installed)}
        async with child_yard(folder, {"parrot": MODEL}, environment=here) as yard:
            answer = await yard.chat("parrot", "good morning", tokens=9)
            assert (answer.status, answer.text) == (200, "good morning good morning")
            stream = await yard.stream("parrot", "good morning", tokens=3)
            assert (stream.text, stream.done) == ("good morning good", True)
            bad = {"name": "p", "engine": "echo", "parameters": {"tiems": 2}}
            refused = await yard.post("/v1/models", bad)
            assert (refused.status, refused.code) == (422, "spec_refused")
            assert "parameters.tiems: is not a parameter of echo; there are times" in refused.message
            assert (await yard.post("/admin/models/parrot/unload", {"now": True})).status == 200
            await until(lambda: not yard.records())
