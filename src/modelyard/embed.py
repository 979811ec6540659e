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
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import structlog
import yaml

from modelyard import compose
from modelyard.client import Client, Json
from modelyard.config import Config, ConfigErrors, Model, Problem, load
from modelyard.errors import ModelyardError, ShuttingDown
from modelyard.telemetry import log_output

T = TypeVar("T")

START_DEADLINE = 60.0
CALL_DEADLINE = 30.0
STOP_GRACE = 5.0
_CLOSE_DEADLINE = STOP_GRACE + 30.0
_CLOSED = "this Modelyard was closed; make a new one"


class Modelyard:
    """A running server of this process; a context manager.

    `config` is a file, a mapping with the same sections, or None for no models yet. What it says about
    listening and keys does not count: the socket lies in a folder that only this user can open. Its data
    folder is the configured one, which one server can use at a time. Raises ConfigErrors, and what the
    methods of `Client` raise.
    """

    def __init__(self, config: str | PathLike[str] | Mapping[str, Any] | None = None) -> None:
        if not structlog.is_configured():
            log_output.configure(quiet=True)
        self._sections = _sections(config)
        loaded = _load(self._sections)
        self._folder = tempfile.TemporaryDirectory(prefix="modelyard-")  # 0700
        self._socket = Path(self._folder.name) / "yard.sock"
        server = replace(loaded.server, unix=self._socket, allowed_hosts=(), allowed_origins=())
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._closed = False
        started: Future[compose.Yard] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(replace(loaded, server=server, keys=()), started)),
            name="modelyard",
            daemon=True,  # an exit without `close` must not hang; atexit closes before that
        )
        self._thread.start()
        try:
            self._yard = started.result(START_DEADLINE)
        except BaseException:
            self._thread.join(_CLOSE_DEADLINE)
            self._folder.cleanup()
            raise
        self._client = Client(self.url)
        atexit.register(self.close)

    async def _run(self, config: Config, started: Future[compose.Yard]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            yard = await compose.build(config)
        except BaseException as error:
            started.set_exception(error)
            return
        try:
            await yard.start()
            started.set_result(yard)
            await self._stop.wait()
            await yard.stop(STOP_GRACE)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)
        finally:
            await yard.close()

    def close(self) -> None:
        """Let what runs finish for a few seconds, then stop every instance. Idempotent."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._client.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CLOSE_DEADLINE)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens, as `Client` takes it: `unix:/…`."""
        return f"unix:{self._socket}"

    # -- models -------------------------------------------------------------------------------------------

    def add_model(
        self, name: str, *, engine: str, source: str | PathLike[str] | None = None, **fields: Any
    ) -> None:
        """Serve one more model. `fields` are those of a model in YAML (`slots`, `parameters`, `keep_alive`,
        …). Raises ConfigErrors, also for a name that is taken; then nothing has changed."""
        section = {"engine": engine, **({"source": str(source)} if source is not None else {}), **fields}
        others = {key: value for key, value in self._sections.items() if key not in ("models", "preload")}
        loaded = _load({**others, "models": {name: section}})
        (added,) = (model for model in loaded.models if model.spec.model == name)
        self._call(self._add(loaded, added))

    async def _add(self, loaded: Config, model: Model) -> None:
        names = self._yard.names
        taken = {name for entry in names.all() for name in (entry.spec.model, *names.aliases_of(entry))}
        clash = next((name for name in (model.spec.model, *model.aliases) if name in taken), None)
        if clash is not None:
            message = f"'{clash}' is a name of a model that is served; remove that first"
            raise ConfigErrors([Problem(model.path, message)])
        await self._yard.add_model(loaded, model)

    def remove_model(self, name: str) -> None:
        """Stop serving a model: who waits is refused, what runs finishes. Raises ModelNotFound."""

        async def remove() -> None:
            self._yard.remove_model(name)

        self._call(remove())

    def models(self) -> list[Json]:
        """The models, in OpenAI's shape with ours under `modelyard`."""
        return self.client.models()

    def load(self, model: str, *, evict: bool = True) -> Json:
        """Have an instance of a model ready."""
        return self.client.load(model, evict=evict)

    def unload(self, model: str, *, now: bool = False) -> Json:
        """Let the instances of a model finish (`now`: cut them) and stop them."""
        return self.client.unload(model, now=now)

    def ps(self) -> Json:
        """Devices, models, instances, queues and the last events."""
        return self.client.ps()

    # -- text ---------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, model: str, prompt: str, *, max_tokens: int = 256, stream: Literal[False] = False, **more: Any
    ) -> str: ...

    @overload
    def generate(
        self, model: str, prompt: str, *, max_tokens: int = 256, stream: Literal[True], **more: Any
    ) -> Iterator[str]: ...

    def generate(
        self, model: str, prompt: str, *, max_tokens: int = 256, stream: bool = False, **more: Any
    ) -> str | Iterator[str]:
        """Continue a prompt; see `Client.generate`."""
        if stream:
            return self.client.generate(model, prompt, max_tokens=max_tokens, stream=True, **more)
        return self.client.generate(model, prompt, max_tokens=max_tokens, stream=False, **more)

    # -- inside -------------------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The client that the methods use. Raises ShuttingDown after `close`."""
        if self._closed:
            raise ShuttingDown(_CLOSED)
        return self._client

    def _call(self, order: Coroutine[Any, Any, T]) -> T:
        """Carry out an order on the server's loop."""
        if self._closed:
            order.close()
            raise ShuttingDown(_CLOSED)
        return asyncio.run_coroutine_threadsafe(order, self._loop).result(CALL_DEADLINE)


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
