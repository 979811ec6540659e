"""The one writer: feeds events to the scheduler and carries out its actions.

`post(event)` is synchronous. An event that is posted while another is handled waits for its turn (a
trampoline), so the scheduler is never entered twice and actions are executed in the order of decisions.
Everything that takes time is a task of `Commands`; everything that is read of the state (views, metrics)
is read between events. Owned by compose; used by the gateway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import structlog

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.scheduler import Scheduler
from modelyard.errors import BrokenPromise, ModelNotFound, ModelRemoved, StoreError
from modelyard.launchers.base import Launcher
from modelyard.runtime.asks import Asks
from modelyard.runtime.commands import Commands
from modelyard.runtime.devices import Devices
from modelyard.runtime.entries import Entry, FileProvider, Progress
from modelyard.runtime.footprints import Footprints
from modelyard.runtime.journal import Journal
from modelyard.runtime.notes import Notes
from modelyard.runtime.observer import Observer
from modelyard.runtime.requests import Requests
from modelyard.runtime.work import WorkSeen
from modelyard.telemetry.series import Duration

log = structlog.get_logger(__name__)


class Driver:
    """`check`, when given, is called with the scheduler after every event and may raise."""

    def __init__(
        self,
        scheduler: Scheduler,
        launcher: Launcher,
        devices: Devices,
        files: FileProvider,
        footprints: Footprints,
        *,
        recheck: float = 10.0,
        check: Callable[[Scheduler], None] | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.launcher = launcher
        self.devices = devices
        self.files = files
        self.footprints = footprints
        self.journal = journal
        self.entries: dict[str, Entry] = {}
        self.progress: dict[str, Progress] = {}
        self.notes = Notes()
        self.check_failures = 0
        self.timing: Duration | None = None  # how long the scheduler takes
        self.recheck = recheck  # seconds between two looks at the devices, at most
        self._check = check
        self._loop = asyncio.get_running_loop()
        self.observer = Observer(
            devices, launcher, footprints, self.post, lambda: list(scheduler.state.instances.values())
        )
        self.commands = Commands(launcher, devices, files, self.observer, self.post, self._on_progress)
        self.requests = Requests(self.post, self.commands.residents)
        self._inbox: deque[ev.Event] = deque()
        self._busy = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._asks = Asks()
        self.work = WorkSeen(scheduler.state.instances.values, self.commands.residents.get)
        self._watches: list[asyncio.Task[None]] = []
        self._gone = asyncio.Event()
        self._closed = False
        self._execute: Mapping[type[ac.Action], Callable[..., None]] = {
            ac.Grant: self.requests.grant,
            ac.Refuse: self.requests.refuse,
            ac.Cut: self.requests.cut,
            ac.Fetch: self._fetch,
            ac.Start: self._start,
            ac.Sleep: self._sleep,
            ac.Wake: self.commands.wake,
            ac.Stop: self._stop,
            ac.Release: self._stop,
            ac.Probe: self.commands.probe,
            ac.Loaded: self._asks.answer,
            ac.Note: self._note,
        }

    # -- life ---------------------------------------------------------------------------------------------

    async def open(self) -> list[str]:
        """Reap leftovers, announce the devices, look at them, and watch them from now on."""
        opening = asyncio.ensure_future(self.launcher.open())
        try:
            reaped = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # A thread takes the folder: only what has been taken can be given back by `close`.
            await asyncio.gather(opening, return_exceptions=True)
            raise
        if self.journal is not None:
            self.journal.open()
        for device in self.devices.all:
            self.post(ev.DeviceAdded(device))
        await self.observer.look()
        for look, failed in (self.observer.look, "devices"), (self.work.look, "work"):
            self._watches.append(asyncio.create_task(self._watch(look, f"{failed}.look_failed")))
        return reaped

    async def _watch(self, look: Callable[[], Awaitable[object]], failed: str) -> None:
        """Look every so many seconds, until cancelled: foreign memory comes and goes."""
        while True:
            await asyncio.sleep(self.recheck)
            try:
                await look()
            except Exception:  # one bad look must not end the watch
                log.exception(failed)

    async def examine(self, entry: Entry) -> None:
        """Look at the files of a version that is to be added, as far as they lie here. (If they cannot be
        read, the control surface and its first request are told why, and the other models serve.)"""
        try:
            files = await self.files.cached(entry)
            lying = files if files is not None else await self.files.lying(entry)
            if lying is not None:
                entry.estimate = self.observer.estimate(entry, lying)
                entry.told = entry.engine.pairs(entry.spec, lying)
            entry.files = files
        except StoreError as error:
            entry.problem = error.message
            log.error("files.unusable", model=entry.spec.model, reason=error.message)
        except Exception as error:  # an adapter or a file that nobody thought of: the others serve
            entry.problem = f"{type(error).__name__}: {error}"
            log.exception("files.unusable", model=entry.spec.model)

    def add(self, entry: Entry) -> None:
        """Make a version known that was examined; its files are used if they are in the cache."""
        self.entries[entry.spec.version] = entry
        self.post(entry.added())
        self.observer.recall(entry)

    def change(self, event: ev.Changed, entries: Iterable[Entry]) -> None:
        """Take several changes as one; `entries` are the versions that it adds. Raises what a bug of the
        scheduler raises: whoever asked must not go on as if it had been taken."""
        fresh = {entry.spec.version: entry for entry in entries}
        self.entries.update(fresh)
        self.post(event)
        for entry in fresh.values():
            self.observer.recall(entry)

    def remove(self, version: str) -> None:
        """Refuse who waits, let what runs finish, then forget the version."""
        self.post(ev.Removed(version))

    async def shut_down(self, grace: float) -> None:
        """Refuse what waits, let what runs finish for `grace` seconds, then cut it; stop every instance."""
        self.post(ev.ShutdownAsked())
        try:
            async with asyncio.timeout(grace):
                await self._all_gone()
        except TimeoutError:
            self.cut_off()

    def cut_off(self) -> None:
        """Refuse what waits, cut what runs, and begin to stop every instance. Returns at once."""
        self.post(ev.ShutdownAsked(now=True))

    async def close(self) -> None:
        """Stop everything at once and wait until it is gone. Idempotent."""
        if self._closed:
            return
        self.cut_off()
        try:
            async with asyncio.timeout(15.0):
                await self._all_gone()
        except TimeoutError:
            log.error("close.incomplete", instances=sorted(self.scheduler.state.instances))
        self._closed = True
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        if self._alarm is not None:
            self._alarm.cancel()
        try:
            await self.commands.close()
            await self.launcher.close()
        finally:
            if self.journal is not None:
                await self.journal.close()
            await asyncio.to_thread(self.devices.close)

    async def gone(self, versions: Collection[str]) -> None:
        """Return when these versions have no instance any more."""
        while any(one.version.key in versions for one in self.scheduler.state.instances.values()):
            await self._next_gone()

    async def _all_gone(self) -> None:
        while self.scheduler.state.instances:
            await self._next_gone()

    async def _next_gone(self) -> None:
        self._gone.clear()
        await self._gone.wait()

    # -- events -------------------------------------------------------------------------------------------

    def post(self, event: ev.Event) -> None:
        """Hand an event to the scheduler and carry out what it answers, before returning (or, when called
        from within, right after what is under way)."""
        if self._closed:
            return
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        broken: Exception | None = None
        try:
            while self._inbox:
                broken = self._handle(self._inbox.popleft()) or broken
        finally:
            self._busy = False
        deadline = self.scheduler.next_deadline()
        if deadline is not None and (self._alarm is None or deadline < self._alarm_at):
            self._arm(deadline)
        if broken is not None:
            raise broken

    def _handle(self, event: ev.Event) -> Exception | None:
        """Take one event and carry out what was decided; returns what whoever asked has to be told."""
        started, now = perf_counter(), self._loop.time()
        failed: Exception | None = None
        try:
            actions = self.scheduler.handle(event, now)
        except Exception as error:
            self._tell_failure("scheduler.failed", handled=repr(event))
            failed, actions = error, self.scheduler.decided
        if self.timing is not None:
            self.timing.count += 1
            self.timing.seconds += perf_counter() - started
        if self.journal is not None:
            self.journal.step(now, event, actions, self.scheduler.state, self.requests.tickets)
        for action in actions:
            try:
                self._execute[type(action)](action)
            except Exception:  # those behind it are decided as well
                self._tell_failure("action.failed", action=repr(action))
        if failed is not None:
            self.requests.fail(event, self.scheduler.state.waiting)
        if isinstance(event, ev.Removed | ev.Changed | ev.Released):
            self._forget_removed()
        if self._check is not None and failed is None:
            try:
                self._check(self.scheduler)
            except AssertionError as error:
                self.check_failures += 1
                log.error("invariant.broken", handled=repr(event), error=str(error))
        return failed if isinstance(event, ev.Changed) else None

    def _tell_failure(self, what: str, **about: str) -> None:
        with suppress(Exception):  # the log may be what failed
            log.exception(what, **about)

    def _forget_removed(self) -> None:
        """A version that was removed goes with its last instance."""
        for version in self.entries.keys() - self.scheduler.state.versions.keys():
            del self.entries[version]
            self.progress.pop(version, None)
            self.commands.forget(version)

    def _arm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._alarm = None
        self.post(ev.Tick())
        if self._alarm is None and (deadline := self.scheduler.next_deadline()) is not None:
            self._arm(deadline)

    # -- instances ----------------------------------------------------------------------------------------

    def _start(self, action: ac.Start) -> None:
        self.commands.start(action, self.entries[action.version])

    def _sleep(self, action: ac.Sleep) -> None:
        self.commands.sleep(action, self.scheduler.state.instances[action.instance])

    def _stop(self, action: ac.Stop | ac.Release) -> None:
        self.commands.stop(action, self.scheduler.state.instances[action.instance])

    def _fetch(self, action: ac.Fetch) -> None:
        self.progress.pop(action.version, None)  # of an earlier fetch
        self.commands.fetch(self.entries[action.version])

    def _on_progress(self, progress: Progress) -> None:
        if progress.version in self.entries:  # else it was removed while it was fetched
            self.progress[progress.version] = progress

    # -- operator -----------------------------------------------------------------------------------------

    async def load(self, version: str, *, evict: bool = True, wait: bool = True) -> str | None:
        """Have an instance of this version ready; returns its name. Raises what stood in the way. Without
        `wait`: None where that was not decided at once, and the load goes on."""
        entry = self.entries.get(version)
        if entry is None:
            raise ModelNotFound(f"there is no version {version}")
        try:
            with self._asks.one(version) as asked:
                self.post(ev.LoadAsked(version, evict))
                if not wait and not asked.done():
                    return None
                async with asyncio.timeout(entry.policy.max_wait + 1.0):
                    return await asked
        except TimeoutError:
            raise BrokenPromise(
                f"{entry.spec.model} was not ready within {entry.policy.max_wait:g} s"
            ) from None
        except ModelRemoved:
            if entry.newest is entry:
                raise
            return await self.load(entry.newest.spec.version, evict=evict, wait=wait)

    def unload(self, version: str, *, instance: str | None = None, now: bool = False) -> None:
        self.post(ev.UnloadAsked(version, instance, now))

    async def fetch(self, entry: Entry, progress: Callable[[Progress], None]) -> None:
        """Have the files of a version in the cache. Raises StoreError."""
        if entry.files is not None:
            return
        files = await self.files.fetch(entry, progress)
        known = self.entries.get(entry.spec.version)  # it may have gone, and come back, meanwhile
        if known is not None and known.files is None:
            need = self.observer.estimate(known, files)
            known.files = files
            self.post(ev.Cached(known.spec.version, need))

    def lose(self, path: Path) -> None:
        """A file was removed from the cache: versions that need it fetch it when they are wanted."""
        for version, entry in tuple(self.entries.items()):
            if entry.files is not None and any(path in file.paths for file in entry.files.values()):
                entry.files = None
                self.post(ev.FilesLost(version))

    def kept_files(self) -> list[Path]:
        """The files of versions that stay, or come back by themselves. Called from any thread."""
        return [
            path
            for entry in tuple(self.entries.values())
            if (files := entry.files) is not None and entry.policy.keeps_files
            for file in files.values()
            for path in file.paths
        ]

    def _note(self, note: ac.Note) -> None:
        if note.kind == "ready":
            instance, said = self.scheduler.state.instances[note.subject], dict(note.fields)
            self.commands.learn(instance, float(said["seconds"]), str(said.get("rung", "")))
        elif note.kind == "gone":
            self._gone.set()
        self.notes.take(self._loop.time(), note)
