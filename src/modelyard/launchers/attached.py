"""Servers that somebody else runs, beside the engines that another launcher starts.

Made by compose around the launcher of processes, called by the driver, which sees one launcher. What a
version's command is, decides who carries it out. A server here or elsewhere is looked at now and then while
it is used; it is reported as ended when it takes no connections any more, or has put the model out of its
memory, as a process would be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from modelyard.core.types import Address, Cause
from modelyard.engines.base import Attach, Call, Exit
from modelyard.launchers.base import Launch, Launcher, LaunchFailed
from modelyard.wire.errors import ConnectFailed, NotTrusted, WireError
from modelyard.wire.pool import Pool

EVERY = 15.0  # seconds between two looks at what is there
AGAIN = 1.0  # seconds to the next look after one that found nobody
LOOKS = 3  # looks in a row that find nobody, after which it is gone
LOOK_TIMEOUT = 10.0  # longer than a connection may take
LOOKED_AT = 64 * 1024  # bytes of what it answers then
LOAD_TIMEOUT = 600.0  # of one request that loads; whoever starts an instance ends it sooner
UNLOAD_TIMEOUT = 5.0
_log = structlog.get_logger(__name__)


class WithAttached:
    """The `Launcher` contract for what runs already; everything else is left to `inner`."""

    def __init__(self, inner: Launcher) -> None:
        self.inner = inner
        self._attached: dict[str, _Attached] = {}
        self._closed = False

    @property
    def on_exit(self) -> Callable[[str, Exit], None]:
        return self.inner.on_exit

    @on_exit.setter
    def on_exit(self, callback: Callable[[str, Exit], None]) -> None:
        self.inner.on_exit = callback

    @property
    def problem(self) -> str:
        """See `Launcher.problem`."""
        return self.inner.problem

    async def open(self) -> list[str]:
        """See `Launcher.open`. What is attached to is nobody's leftover."""
        return await self.inner.open()

    async def start(self, launch: Launch) -> Address:
        """See `Launcher.start`: a server that runs already has to take connections, and to load the model if
        it is told to."""
        what = launch.command(Address())
        if not isinstance(what, Attach):
            return await self.inner.start(launch)
        instance = launch.instance
        if self._closed:
            raise LaunchFailed(f"{instance} cannot be started: the launcher is closed")
        if instance in self._attached:
            raise LaunchFailed(f"{instance} is running already")
        try:
            address = address_of(what)
            attached = _Attached(Pool(address), what, launch.health)
        except ValueError as error:
            raise LaunchFailed(f"{instance}: {error}", cause=Cause.BAD_ARGUMENTS) from error
        self._attached[instance] = attached
        try:
            await attached.load()
            attached.watch(lambda: self.on_exit(instance, Exit(code=None)))
        except BaseException:
            try:
                await attached.leave()
            finally:
                self._attached.pop(instance, None)
            raise
        return address

    async def stop(self, instance: str, grace: float) -> None:
        """See `Launcher.stop`. What is attached to goes on without us; it is only told to unload."""
        attached = self._attached.get(instance)
        if attached is None:
            await self.inner.stop(instance, grace)
            return
        try:
            there = await attached.leave()
        finally:
            known = self._attached.pop(instance, None) is not None
        if known and there:
            self.on_exit(instance, Exit(code=0))

    async def close(self) -> None:
        """See `Launcher.close`. Idempotent."""
        self._closed = True
        try:
            await asyncio.gather(*(self.stop(instance, 0.0) for instance in tuple(self._attached)))
        finally:
            await self.inner.close()

    def pids(self, instance: str) -> list[int]:
        """See `Launcher.pids`. Those of a server that we did not start are not ours to count."""
        return [] if instance in self._attached else self.inner.pids(instance)

    def held(self, instance: str) -> Mapping[str, int] | None:
        """See `Launcher.held`."""
        attached = self._attached.get(instance)
        return self.inner.held(instance) if attached is None else attached.held

    def log(self, instance: str) -> Path | None:
        """See `Launcher.log`."""
        return None if instance in self._attached else self.inner.log(instance)

    def tail(self, instance: str, lines: int = 20) -> str:
        """See `Launcher.tail`: of what is attached to, why it could not be reached lately."""
        attached = self._attached.get(instance)
        return self.inner.tail(instance, lines) if attached is None else attached.trouble


class _Attached:
    """One server as one instance uses it. `trouble` is why it could not be reached lately, or empty; `held`
    what it said last of the model's memory."""

    def __init__(self, pool: Pool, what: Attach, health: str) -> None:
        self.pool = pool
        self.trouble = ""
        self.held: Mapping[str, int] | None = None
        self._what = what
        self._health = health
        self._watching: asyncio.Task[None] | None = None
        self._leaving = asyncio.Lock()
        self._loaded = False  # it may have the model in its memory because of us
        self._gone = False

    async def load(self) -> None:
        """Have it there, with the model in its memory. Raises LaunchFailed."""
        url = self.pool.address
        try:
            await self._look()
            for call in self._what.load:
                self._loaded = True
                status, body = await self._ask(call, LOAD_TIMEOUT)
                if not 200 <= status < 300:
                    self._loaded = False
                    said = body[:300].decode(errors="replace")
                    raise LaunchFailed(f"{url} answered {call.path} with {status}: {said}", status=status)
            if self._what.held is not None and not await self._there():
                raise LaunchFailed(self.trouble)
        except NotTrusted as error:
            raise LaunchFailed(str(error), cause=Cause.BAD_ARGUMENTS) from error
        except WireError as error:
            raise LaunchFailed(str(error)) from error
        except TimeoutError:
            raise LaunchFailed(f"{url} takes connections, and does not answer") from None

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Look at it from now on, until it is left or gone. Raises LaunchFailed if it was left already."""
        if self._gone:
            raise LaunchFailed(f"{self.pool.address} was left while it loaded")
        self._watching = asyncio.get_running_loop().create_task(self._watch(on_gone))

    async def leave(self) -> bool:
        """Have it unload, and close the connections to it. Returns whether it was started, and there until
        now."""
        async with self._leaving:
            there = self._watching is not None and not self._gone
            unload = self._what.unload if self._loaded and not self._gone else ()
            self._gone = True
            if self._watching is not None:
                self._watching.cancel()
                await asyncio.gather(self._watching, return_exceptions=True)
            self.pool.close()  # a load that is still under way would undo what follows
            self.pool = Pool(self.pool.address)
            try:
                for call in unload:
                    await self._ask(call, UNLOAD_TIMEOUT)
            except (WireError, TimeoutError) as error:
                _log.warning("attached.not_unloaded", address=str(self.pool.address), reason=str(error))
            finally:
                self.pool.close()
            return there

    async def _watch(self, on_gone: Callable[[], None]) -> None:
        missed = 0
        while missed < LOOKS:
            await asyncio.sleep(AGAIN if missed else EVERY)
            try:
                if not await self._there():
                    break
            except ConnectFailed as error:
                missed += 1
                self.trouble = str(error)
                continue
            except (WireError, TimeoutError):  # somebody is there; whether they serve, requests find out
                pass
            missed, self.trouble = 0, ""
        self._gone = True
        on_gone()

    async def _there(self) -> bool:
        """Whether it has the model in its memory, as far as it tells. Raises WireError and TimeoutError."""
        if (held := self._what.held) is None:
            await self._look()
            return True
        _, body = await self._ask(held.call, LOOK_TIMEOUT)
        try:
            self.held = held.count(body)
        except ValueError as error:
            _log.warning("attached.held_unclear", address=str(self.pool.address), reason=str(error))
            return True
        if self.held is None:
            self.trouble = f"{self.pool.address} has put the model out of its memory"
        return self.held is not None

    async def _look(self) -> None:
        """Any answer will do; a long one is not read to its end. Raises as `_ask`."""
        await self.pool.fetch("GET", self._health, timeout=LOOK_TIMEOUT, limit=LOOKED_AT, cut=True)

    async def _ask(self, call: Call, timeout: float) -> tuple[int, bytes]:
        return await self.pool.fetch(call.method, call.path, call.body, timeout=timeout)


def address_of(what: Attach) -> Address:
    """Where it is. Raises ValueError for a URL that nothing can be asked at."""
    parts = urlsplit(what.url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError("its URL is not http://HOST[:PORT] or https://HOST[:PORT]")
    with suppress(UnicodeError):  # else it does not resolve, and that is said
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    return Address(
        host=host,
        port=port or {"http": 80, "https": 443}[parts.scheme],
        scheme=parts.scheme,
        base=parts.path.rstrip("/"),
        headers=what.headers,
        ca=what.ca,
    )
