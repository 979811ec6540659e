"""An S3 server on this machine: SeaweedFS, started once for a session of tests."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from pydantic import SecretStr

from modelyard.config import S3Setting
from modelyard.store.signing import Credentials, signed

USER, SECRET = "me", "hunter2secret"
BUCKET = "models"
_STARTED = 60.0  # seconds


@dataclass(frozen=True)
class S3Server:
    """One with a bucket, read and written by USER alone."""

    url: str
    bucket: str = BUCKET

    @property
    def setting(self) -> S3Setting:
        return S3Setting(self.url, path_style=True, access_key_id=USER, secret_access_key=SecretStr(SECRET))

    @property
    def store(self) -> S3Store:
        return S3Store(
            self.bucket,
            endpoint=self.url,
            access_key_id=USER,
            secret_access_key=SECRET,
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """A signed request for what obstore does not do."""
        sent = signed(
            method, self.url + path, headers or {}, Credentials(USER, SECRET), "us-east-1", body=body
        )
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        with closing(connection):
            connection.request(method, path, body=body, headers=sent)
            assert connection.getresponse().status == 200

    def put(self, key: str, content: bytes, **attributes: str) -> str | None:
        """Returns its version, in a bucket that keeps them."""
        return obstore.put(self.store, key, content, attributes=attributes or None)["version"]


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
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=64",
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
