"""Files that the store makes of others: a model's GGUF file, quantized; a folder, converted for CTranslate2.
Each is made once.

Made by the runtime's file provider, on top of the store: to it, they are one more source, whose text names
the digest of the parent, the type, the tool and its version. So locks, progress, stops, room, and what a
killed process leaves behind are the store's own.
"""

from __future__ import annotations

import errno
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import ClassVar

import structlog

from modelyard.engines.gguf import read_parts
from modelyard.errors import ConversionFailed, QuantizeFailed, StoreError
from modelyard.store.cache import Store
from modelyard.store.formats import Terms
from modelyard.store.quantize import (
    Tool,
    is_quantized,
    likely_bytes,
    main_type,
    planned,
    problem,
    tool_for,
)
from modelyard.store.source import HEADROOM, Progress, Source, StoredFile, Watch

log = structlog.get_logger(__name__)

SCHEME = "quantized"
CONVERTED = "ctranslate2-"
"""How the types begin that folders are converted to: `ctranslate2-int8`."""
_CONVERSION = "1"  # another one where what is made of the same folder changes
_POLL = 0.5  # seconds between two looks at whether it is still wanted
_GRACE = 5.0
NICE = 10
_SAID = 2000


@dataclass(frozen=True, slots=True)
class Converter:
    """Our own, run by a Python that has `modelyard[translation]`."""

    program: str = field(default="", compare=False)
    name: str = "modelyard"
    version: str = _CONVERSION


class Derived:
    """`make` gives the file that is made of another, or of a folder; `cached` looks for it alone."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._maker = _Maker()
        store.serve(self._maker)

    def cached(self, parent: StoredFile, type: str) -> StoredFile | None:
        """The file, if it was made and is unchanged. Costs a stat."""
        tool = _tool(type)
        return None if tool is None else self._store.cached(_source(parent, type, tool), Terms())

    async def recheck(self, parent: StoredFile, type: str) -> StoredFile | None:
        """See Store.recheck."""
        tool = _tool(type)
        return None if tool is None else await self._store.recheck(_source(parent, type, tool), Terms())

    async def make(
        self,
        parent: StoredFile,
        type: str,
        progress: Callable[[Progress], None] | None = None,
        program: str = "",
    ) -> StoredFile:
        """The file, made if need be; several callers and processes share one making. `progress` counts bytes
        of the parent. `program` is the Python that converts, by default this one. Raises QuantizeFailed,
        ConversionFailed, and what Store.fetch raises."""
        tool = _tool(type, program)
        if isinstance(tool, Tool | None) and (unmade := problem(type, len(parent.paths))):
            raise QuantizeFailed(f"quantize: {unmade}")
        assert tool is not None
        source = _source(parent, type, tool)
        with self._maker.offered(source, _Order(parent, type, tool)):
            return await self._store.fetch(source, Terms(), progress=progress)


def _tool(type: str, program: str = "") -> Tool | Converter | None:
    return Converter(program) if type.startswith(CONVERTED) else tool_for(type)


def _source(parent: StoredFile, type: str, tool: Tool | Converter) -> str:
    return f"{SCHEME}://{parent.digest}/{type}/{tool.name}-{tool.version}"


@dataclass(frozen=True, slots=True)
class _Order:
    parent: StoredFile
    type: str
    tool: Tool | Converter


class _Maker(Source):
    """The source of what is made here. A text of it means nothing but while its parent is offered."""

    schemes: ClassVar[tuple[str, ...]] = (SCHEME,)

    def __init__(self) -> None:
        self._orders: dict[str, list[_Order]] = {}
        self._lock = Lock()

    @contextmanager
    def offered(self, source: str, order: _Order) -> Iterator[None]:
        """While inside, `source` can be fetched."""
        with self._lock:
            self._orders.setdefault(source, []).append(order)
        try:
            yield
        finally:
            with self._lock:
                self._orders[source].remove(order)
                if not self._orders[source]:
                    del self._orders[source]

    def problem(self, source: str) -> str | None:
        if source in self._orders:
            return None
        return "is made by the store alone: write what it is made of, and `quantize: TYPE` beside it"

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        order = self._orders[source][0]
        if isinstance(order.tool, Converter):
            return _converted(order.parent, order.type.removeprefix(CONVERTED), order.tool, folder, watch)
        return self._quantized(order, order.tool, folder, watch)

    def _quantized(self, order: _Order, tool: Tool, folder: Path, watch: Watch) -> Path:
        header, path = read_parts(order.parent.paths), order.parent.path
        before = main_type(header)
        again = is_quantized(before)
        tensors, remarks = planned(header, order.type) if tool.program == "" else ([], [])
        made = sum(tensor.bytes for tensor in tensors) or likely_bytes(header, order.type)
        watch.room(folder, header.end - header.tensor_bytes + made + HEADROOM)
        target = folder / "quantized.gguf"
        about = {"source": str(path), "type": order.type, "tool": tool.name, "of": before}
        log.info("quantize.requantizes" if again else "quantize.begins", **about)
        for remark in remarks:
            log.warning("quantize.kept", **about, reason=remark)
        _run(tool.argv(path, target, order.type, before), header.tensor_bytes, watch, QuantizeFailed)
        if not target.is_file():
            raise QuantizeFailed(f"{tool.name} ended well and wrote no file; look at {path}")
        return target


def _converted(parent: StoredFile, type: str, tool: Converter, folder: Path, watch: Watch) -> Path:
    watch.room(folder, parent.size * (2 if type == "float32" else 1) + HEADROOM)
    target = folder / "converted.bin"
    log.info("convert.begins", source=str(parent.path), type=type)
    module = "modelyard.servers.translation.packed"
    program = tool.program or sys.executable
    _run([program, "-m", module, str(parent.path), str(target), type], 0, watch, ConversionFailed)
    return target


def _run(argv: list[str], total: int, watch: Watch, failed: type[StoreError]) -> None:
    """Run a tool to its end; it is ended when nobody wants the file any more. Raises `failed` with what it
    said last, DiskFull through OSError, and what `watch` raises."""
    with subprocess.Popen(  # noqa: S603 - our own tool, or one that the operator installed
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as process:
        try:
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)  # who is served meanwhile goes first
            said = _follow(process, total, watch)
        except BaseException:
            process.terminate()
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode:
        name = Path(argv[0]).name
        message = said.strip()[-_SAID:] or "without a word"
        if "No space left" in message:
            raise OSError(errno.ENOSPC, message)
        raise failed(f"{name} ended with {process.returncode}: {message}")


def _follow(process: subprocess.Popen[bytes], total: int, watch: Watch) -> str:
    """What it writes until it closes its output, but for its progress, which is passed on."""
    assert process.stdout is not None
    said, rest = "", b""
    while True:
        watch.check()
        if not select.select([process.stdout], [], [], _POLL)[0]:
            continue
        data = os.read(process.stdout.fileno(), 1 << 16)
        *lines, rest = (rest + data).split(b"\n") if data else [rest, b""]
        for line in lines:
            done = _progress(line, total)
            if done is None:
                said = (said + line.decode(errors="replace") + "\n")[-2 * _SAID :]
            else:
                watch.progress(done, total)
        if not data:
            return said
        rest = rest[-_SAID:]


def _progress(line: bytes, total: int) -> int | None:
    """Bytes that are done, from a line of either tool: `DONE TOTAL`, or `[ 12/ 272] name - …`."""
    if own := re.fullmatch(rb"(\d+) \d+", line):
        return int(own[1])
    if one := re.match(rb"\[\s*(\d+)/\s*(\d+)\]", line):
        return total * (int(one[1]) - 1) // max(1, int(one[2]))
    return None
