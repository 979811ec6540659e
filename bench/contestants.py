"""Who stands in front of the mock engine: started as processes of their own, stopped as a tree.

Used by request_path.py and swap.py. `Contestants` owns every process that it starts.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from measuring import BUILT, OUT, ROOT, cpu_seconds

START_DEADLINE = 30.0
STOP_DEADLINE = 20.0


@dataclass(frozen=True)
class Contestant:
    """A running program that answers on `address`. What executes `engine` below it is not its own cost."""

    name: str
    address: str
    pid: int
    key: str = ""
    engine: Path | None = None

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid, without=self.engine)


def build() -> None:
    """Compile the Go programs into .cache/bench. Exits with a message when there is no Go."""
    if shutil.which("go") is None:
        sys.exit("make bench needs Go 1.21 or newer on PATH (Debian: golang-go); the product does not")
    BUILT.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["go", "build", "-o", f"{BUILT}/", "./..."],
        cwd=ROOT / "bench",
        env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"},
        check=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Contestants:
    """A context in which contestants live. `folder` ends with it; what they print stays in bench/out/logs."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="modelyard-bench-")
        self.folder = Path(self._folder.name)
        self._logs = OUT / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Contestants:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            stop(process)
        self._folder.cleanup()

    def mock(self) -> Contestant:
        """The mock engine itself, listening on TCP."""
        return self._announced("mock", [str(BUILT / "mock")])

    def raw_relay(self, upstream: str) -> Contestant:
        return self._announced("raw relay", [sys.executable, str(ROOT / "bench/raw_relay.py"), upstream])

    def go_proxy(self, upstream: str) -> Contestant:
        return self._announced("go proxy", [str(BUILT / "goproxy"), f"http://{upstream}"])

    def modelyard(
        self,
        config: Path,
        environment: Mapping[str, str],
        engine: Path | None,
        prepare: Callable[[Path], None] = lambda data: None,
    ) -> Contestant:
        """Modelyard with this configuration, which may use ${BENCH_PORT}, ${BENCH_KEY}, ${BENCH_DATA} and
        what `environment` adds; `prepare` may fill its data folder before. Returns once its health check
        answers."""
        port, key = free_port(), f"bench-{secrets.token_hex(16)}"
        data = self.folder / f"data-{port}"
        prepare(data)
        given = {"BENCH_PORT": str(port), "BENCH_KEY": key, "BENCH_DATA": str(data), **environment}
        process = self._start(
            [str(Path(sys.executable).parent / "modelyard"), "serve", "-c", str(config)],
            "modelyard",
            given,
        )
        address = f"127.0.0.1:{port}"
        self._until_healthy(process, address, "modelyard")
        return Contestant("modelyard", address, process.pid, key, engine)

    def _announced(self, name: str, argv: Sequence[str]) -> Contestant:
        """A program that prints the address it bound as its first line."""
        log = name.replace(" ", "-")
        process = self._start(argv, log, {})
        deadline = time.monotonic() + START_DEADLINE
        while time.monotonic() < deadline and process.poll() is None:
            text = (self._logs / log).read_text()
            if "\n" in text:
                return Contestant(name, text.splitlines()[0], process.pid)
            time.sleep(0.01)
        raise RuntimeError(f"{name} did not say where it listens: {self._tail(log)}")

    def _start(self, argv: Sequence[str], log: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        with (self._logs / log).open("w") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                text=True,
            )
        self._processes.append(process)
        return process

    def _until_healthy(self, process: subprocess.Popen[str], address: str, log: str) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{address}/health", timeout=1.0):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise RuntimeError(f"Modelyard did not become healthy: {self._tail(log)}")

    def _tail(self, log: str) -> str:
        return "\n".join((self._logs / log).read_text().splitlines()[-20:])


def stop(process: subprocess.Popen[str]) -> None:
    """TERM and wait; past the deadline, kill the whole tree."""
    if process.poll() is not None:
        return
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        for one in tree:
            if one.is_running():
                one.kill()
        process.kill()
        process.wait()
