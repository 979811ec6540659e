"""Modelyard from Python: a whole server inside this process, on a private Unix socket.

    with Modelyard() as yard:
        yard.add_model("echo", engine="fake")
        print(yard.generate("echo", "Hello"))

Used by programs. A thread of its own runs the event loop; every request goes through the socket as any
client's would, so what is tried here behaves the same when it is served.
"""

from __future__ import annotations

import asyncio
import atexit
import tempfile
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import httpx
import structlog
import yaml

from modelyard import compose
from modelyard.client import Client
from modelyard.config import Config, ConfigErrors, Problem, load
from modelyard.errors import ModelyardError, ServerUnreachable, ShuttingDown
from modelyard.telemetry import log_output

START_DEADLINE = 60.0
CALL_DEADLINE = 30.0
STOP_GRACE = 5.0
_CLOSE_DEADLINE = STOP_GRACE + 30.0
_CLOSED = "this Modelyard was closed; make a new one"


class Modelyard(Client):
    """A running server of this process, and its client; a context manager.

    `config` is a file, a mapping with the same sections, or None for no models yet. What it says about
    listening and keys does not count, nor do the registry's keys: the socket lies in a folder that only this
    user can open. Its data folder is the configured one, which one server can use at a time. Raises
    ConfigErrors, and what the methods of `Client` raise; those raise ShuttingDown after `close`.
    """

    def __init__(self, config: str | PathLike[str] | Mapping[str, Any] | None = None) -> None:
        if not structlog.is_configured():
            log_output.configure(quiet=True)
        self._sections = _sections(config)
        loaded = _load(self._sections)
        self._folder = tempfile.TemporaryDirectory(prefix="modelyard-")  # 0700
        socket = Path(self._folder.name) / "yard.sock"
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started: Future[compose.Yard] = Future()
        self._thread = threading.Thread(
            target=self._serve,
            args=(loaded, socket, started),
            name="modelyard",
            daemon=True,  # an exit without `close` must not hang; atexit closes before that
        )
        self._thread.start()
        try:
            self._yard = started.result(START_DEADLINE + _CLOSE_DEADLINE)
        except BaseException:
            self._end()
            raise
        super().__init__(f"unix:{socket}")
        atexit.register(self.close)

    def _serve(self, config: Config, socket: Path, started: Future[compose.Yard]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run(config, socket, started))

    async def _run(self, config: Config, socket: Path, started: Future[compose.Yard]) -> None:
        yard: compose.Yard | None = None

        def at_the_socket(config: Config) -> Config:
            server = replace(config.server, unix=socket, allowed_hosts=(), allowed_origins=())
            return replace(config, server=server, keys=(), keyless=True)

        try:
            async with asyncio.timeout(START_DEADLINE):
                origin = compose.Origin(adjust=at_the_socket)
                yard = await compose.build(at_the_socket(config), origin)
                await yard.start()
            started.set_result(yard)
            await self._stop.wait()
            await yard.stop(STOP_GRACE)
        except BaseException as error:
            if started.done():
                raise
            late = ServerUnreachable(f"the server did not start within {START_DEADLINE:g} s")
            started.set_exception(late if isinstance(error, TimeoutError) else error)
        finally:
            if yard is not None:
                await yard.close()

    def close(self) -> None:
        """Let what runs finish for a few seconds, then stop every instance. Idempotent."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        super().close()
        self._end()

    def _end(self) -> None:
        """Have the thread end, and wait for that."""
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CLOSE_DEADLINE)
        self._folder.cleanup()

    def add_model(
        self, name: str, *, engine: str, source: str | PathLike[str] | None = None, **fields: Any
    ) -> None:
        """Serve one more model. `fields` are those of a model in YAML (`slots`, `parameters`, `keep_alive`,
        …). Raises ConfigErrors, also for a name that is taken and for a model that can never fit; then
        nothing has changed."""
        section = {"engine": engine, **({"source": str(source)} if source is not None else {}), **fields}
        others = {key: value for key, value in self._sections.items() if key not in ("models", "preload")}
        loaded = _load({**others, "models": {name: section}})
        (added,) = (model for model in loaded.models if model.spec.model == name)
        self._call(self._yard.add_model(loaded, added))

    def remove_model(self, name: str) -> None:
        """Stop serving a model: who waits is refused, what runs finishes. Raises ModelNotFound."""
        self._call(self._yard.remove_model(name))

    def _call(self, order: Coroutine[Any, Any, None]) -> None:
        """Carry out an order on the server's loop."""
        if self._closed:
            order.close()
            raise ShuttingDown(_CLOSED)
        carried_out = asyncio.run_coroutine_threadsafe(order, self._loop)
        try:
            carried_out.result(CALL_DEADLINE)
        finally:
            carried_out.cancel()

    def _open(self) -> httpx.Client:
        if self._closed:
            raise ShuttingDown(_CLOSED)
        return super()._open()


def _sections(config: str | PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return dict(config)
    return {"include": [str(Path(config).absolute())]}


def _load(sections: Mapping[str, Any]) -> Config:
    """The configuration of some sections, through the same door as a file."""
    if not sections:
        return load(None)
    try:
        text = yaml.safe_dump(dict(sections))
    except yaml.YAMLError as error:
        raise ConfigErrors([Problem("", f"holds a value that YAML has no word for: {error}")]) from None
    return load(None, text)


__all__ = ["Client", "Modelyard", "ModelyardError"]
