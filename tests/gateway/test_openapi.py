"""The OpenAPI document against a live server: whatever it allows is answered as it says, and never with 500.

`default` would allow every status; here it is read as the errors that any path may send.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.command_line import command, free_port
from gateway.live_yard import DEADLINE, MB, fake, sections, short_folder
from modelyard.gateway.reference import EVERYWHERE

ENDLESS = ("/admin/events", "/admin/instances/{instance}/logs")
EVERYWHERE_BUT_BUGS = {str(error.status) for error in EVERYWHERE} - {"500"}
CHECKS = "status_code_conformance,content_type_conformance,unsupported_method,allow_header_conformance"
LIMIT = 240.0  # seconds
SECRET = "s" * 20
KEYS = [{"name": "tester", "key": SECRET, "scopes": ["inference", "admin"], "max_priority": "high"}]
WITH_KEY = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture
def url() -> Iterator[str]:
    """A server with one model, and room for others."""
    with short_folder() as folder:
        url = f"http://127.0.0.1:{(port := free_port())}"
        path = folder / "modelyard.yaml"
        server = {"unix": None, "port": port}
        models = {"a": fake(aliases=["short"])}
        path.write_text(sections(folder, models, memory=100 * MB, server=server, keys=KEYS))
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command("serve", "-c", str(path), "--no-watch"), stdout=output, stderr=output
            )
        try:
            _wait_for(url, process)
            yield url
            assert process.poll() is None
            assert b"Traceback" not in (folder / "output").read_bytes()
        finally:
            process.terminate()
            process.wait(DEADLINE)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE
    while True:
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return
        except httpx.HTTPError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)


def _document(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/openapi.json", timeout=DEADLINE).json()
    found["paths"] = {path: found["paths"][path] for path in found["paths"] if path not in ENDLESS}
    for operations in found["paths"].values():
        for operation in operations.values():
            error = operation["responses"].pop("default")
            for status in EVERYWHERE_BUT_BUGS:
                operation["responses"].setdefault(status, error)
    return found


@pytest.mark.timeout(LIMIT + 60)
def test_it_says_what_is_answered(url: str, tmp_path: Path) -> None:
    """Single requests to every path, and chains of them in which answers name what further requests take."""
    (tmp_path / "openapi.json").write_text(json.dumps(_document(url)))
    with_key = [f"--header=Authorization: {WITH_KEY['Authorization']}"]  # some requests make keys
    words = [
        "run",
        "openapi.json",
        "--url",
        url,
        *with_key,
        "--checks",
        CHECKS,
        "--max-examples",
        "30",
        "--seed",
        "1",
    ]
    more = ["--phases", "examples,fuzzing,stateful", "--generation-deterministic", "--no-shrink"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *words, *more, "--request-timeout", "20", "--no-color"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "openapi_hooks",
            "PYTHONPATH": str(Path(__file__).parent),
        },
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    changes = httpx.get(f"{url}/v1/audit?limit=500", headers=WITH_KEY).json()["data"]
    assert {"register", "add_version", "tag", "add_key", "put_engine"} <= {one["action"] for one in changes}
