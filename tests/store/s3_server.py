"""An S3 server on this machine: SeaweedFS, started once for a session of tests."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from pydantic import SecretStr

from modelyard.config import S3Setting

USER, SECRET = "me", "hunter2secret"
BUCKET = "models"
_STARTED = 60.0  # seconds


@dataclass(frozen=True)
class S3Server:
    """One with a bucket, read and written by USER alone."""

    url: str

    @property
    def setting(self) -> S3Setting:
        return S3Setting(self.url, path_style=True, access_key_id=USER, secret_access_key=SecretStr(SECRET))

    @property
    def bucket(self) -> S3Store:
        return S3Store(
            BUCKET,
            endpoint=self.url,
            access_key_id=USER,
            secret_access_key=SECRET,
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )

    def put(self, key: str, content: bytes, **attributes: str) -> None:
        obstore.put(self.bucket, key, content, attributes=attributes or None)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """One that serves until the end of the block, with its files in `folder`."""
    right = {
        "credentials": [{"accessKey": USER, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [{"name": USER, **right}]}))
    ports = _free_ports(9)
    named = [f"{one}.port{more}" for one in ("master", "volume", "filer", "s3") for more in ("", ".grpc")]
    named.append("debug.port")
    argv = [
        _weed(),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        "-volume.max=8",
    ]
    argv += [f"-s3.config={folder / 's3.json'}", "-master.telemetry=false", "-master.volumeSizeLimitMB=128"]
    argv += [f"-{name}={port}" for name, port in zip(named, ports, strict=True)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder, stdin=subprocess.DEVNULL)
    server = S3Server(f"http://127.0.0.1:{ports[named.index('s3.port')]}")
    try:
        _await(server, process, folder / "log")
        yield server
    finally:
        process.kill()
        process.wait(10)


def _await(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _STARTED
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()[-2000:]
        with suppress(BaseError, OSError):
            server.put("started", b"x")
            return
        time.sleep(0.1)


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed") or "weed"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        found = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
