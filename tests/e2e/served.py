"""Servers as users start them, each a process of its own on a free port: `modelyard serve`, and Ollama's."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from cli.command_line import command, free_port
from engines.demo_model import demo_gguf

STARTED = 60.0  # seconds
ENDED = 30.0


@contextmanager
def modelyard(config: Path, data: Path, port: int = 0) -> Iterator[str]:
    """The URL of a server of this configuration; it ends as with Ctrl-C, and has to end well."""
    port = port or free_port()
    words = command("serve", "-c", str(config), "--port", str(port))
    with running(words, f"http://127.0.0.1:{port}/health", data, {}) as process:
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        assert process.wait(ENDED) == 0


def ollama_program() -> str | None:
    """Ollama on PATH, or the one that scripts/build-ollama built."""
    built = sorted(demo_gguf().parent.glob("ollama-*"))
    return shutil.which("ollama") or (str(built[-1]) if built else None)


@contextmanager
def ollama(program: str, models: Path, home: Path, more: Mapping[str, str] | None = None) -> Iterator[str]:
    """The URL of Ollama's own server over this model store; `more` is its environment."""
    url = f"http://127.0.0.1:{free_port()}"
    own = {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(models), "HOME": str(home), **(more or {})}
    with running([program, "serve"], f"{url}/api/version", home, own):
        yield url


def create(url: str, models: Path, name: str, file: Path) -> None:
    """Have it make a model of this file, which is linked into its store."""
    blob = models / "blobs" / f"sha256-{hashlib.sha256(name.encode()).hexdigest()}"
    blob.symlink_to(file)
    files = {"model.gguf": blob.name.replace("-", ":")}
    parameters = {"num_gpu": 0, "stop": ["<|im_end|>"]}
    body = {"model": name, "files": files, "parameters": parameters, "stream": False}
    httpx.post(f"{url}/api/create", json=body, timeout=60).raise_for_status()


@contextmanager
def running(
    words: list[str], health: str, folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers, with its output in a file of the folder; killed with its group at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "XDG_DATA_HOME": str(folder), **environment}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ,
            start_new_session=True,
        )
    try:
        _wait_for(health, process, folder / "output")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(ENDED)


def _wait_for(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    ends = time.monotonic() + STARTED
    while time.monotonic() < ends:
        try:
            httpx.get(url, timeout=5.0).raise_for_status()
        except httpx.HTTPError:
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
        else:
            return
    raise AssertionError(f"it does not serve: {output.read_text()[-2000:]}")
