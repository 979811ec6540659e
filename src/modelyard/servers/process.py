"""What our own engine processes over a library are: they listen, load in a thread, and end when told to.

Used by the `__main__` of each. What the launcher tells is one JSON object on the command line. Standard
library only.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from modelyard.servers import plain_http

T = TypeVar("T")

_KEEP_ALIVE = 3600.0
_KEPT_REQUESTS = 1 << 31


class Api(Protocol):
    """What answers; `model` is None while it loads."""

    model: Any

    async def handle(self, exchange: plain_http.Exchange) -> None: ...


def told(argv: list[str], kind: type[T]) -> T:
    """The parameters, a dataclass of plain values, from the JSON object on a command line. Raises ValueError
    that names what is wrong, and TypeError for what is missing."""
    if len(argv) != 1:
        raise ValueError("one JSON object is expected")
    given = json.loads(argv[0])
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}: there is no such parameter; there are {', '.join(known)}")
        if type(value).__name__ != known[name].type:
            raise ValueError(f"{name}: {value!r} is no {known[name].type}")
    return kind(**given)


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def serve(
    address: str, about: str, make: Callable[[Callable[[str], None]], Api], load: Callable[[], object | None]
) -> int:
    """Serve until SIGTERM or SIGINT, then end the process; 1 when it cannot listen, `load` gives None, memory
    is exhausted, or the model fails: `make` is given what to call then. `load` has said why."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    def failed(message: str) -> None:
        log(f"error: the model has failed: {message}")
        end(1)

    def loaded(loading: asyncio.Future[object | None]) -> None:
        try:
            api.model = loading.result()
        except Exception as error:  # whatever the libraries raise
            log(f"error: failed to load model: {type(error).__name__}: {error}")
        if api.model is None:
            end(1)
        else:
            log("model loaded")

    def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        if isinstance(context.get("exception"), MemoryError):  # what it was about to do is undone
            failed("out of memory")

    loop.set_exception_handler(unhandled)
    api = make(failed)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    try:
        server = await plain_http.listen(address, api.handle, _KEEP_ALIVE, _KEPT_REQUESTS)
    except OSError as error:
        log(f"couldn't bind to {address}: {error}")
        return 1
    log(f"listening on {address}, loading {about}")
    loading = loop.run_in_executor(None, load)
    loading.add_done_callback(loaded)
    code = await ended
    server.close()
    _remove_socket(address)
    sys.stderr.flush()
    # At once: threads of the libraries would be waited for, and hold nothing that has to be saved.
    os._exit(code)


def _remove_socket(address: str) -> None:
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)
