"""Commands: what the scheduler asked for, carried out with real processes, files and probes.

Owned by the driver. Each command runs in one task and posts exactly one terminal event, whatever goes
wrong: Ready or Failed for a start or a wake, Slept or Failed for a sleep, Released for a stop or a release,
Cached or FetchFailed for a fetch, Probed for a probe. Nothing here decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from threading import Event
from typing import Any, TypeVar

import structlog

from modelyard.config.secrets import without
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core import sleep as sleeping
from modelyard.core.state import Instance
from modelyard.core.types import Address, Cause
from modelyard.engines.base import Attach, Command, Exit
from modelyard.errors import StoreError
from modelyard.launchers.base import Launch, Launcher, LaunchFailed
from modelyard.runtime import probes
from modelyard.runtime.devices import Devices
from modelyard.runtime.endpoint import Endpoint
from modelyard.runtime.entries import Entry, FileProvider, Progress
from modelyard.runtime.observer import Observer
from modelyard.runtime.read_ahead import ReadingAhead
from modelyard.runtime.resident import Resident, StartFailed, describe, refused, rung_of, warm_up_cause
from modelyard.wire.errors import WireError
from modelyard.wire.pool import Pool

log = structlog.get_logger(__name__)

TERM_GRACE = 5.0  # seconds between TERM and KILL
EXIT_NOTICE = 0.5  # seconds in which an exit is heard of after the connection to the engine broke
LOG_LINES = 400
LANGUAGES_TIMEOUT = 10.0
LATEST = 5.0  # seconds that what was cancelled may take to end


Result = TypeVar("Result")


class Commands:
    def __init__(
        self,
        launcher: Launcher,
        devices: Devices,
        files: FileProvider,
        observer: Observer,
        post: Callable[[ev.Event], None],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._launcher = launcher
        self._devices = devices
        self._files = files
        self._observer = observer
        self._post = post
        self._on_progress = on_progress
        self._tasks: set[asyncio.Task[None]] = set()
        self._fetches: dict[str, asyncio.Task[None]] = {}  # by version
        self._ahead = ReadingAhead(devices)
        self.residents: dict[str, Resident] = {}
        launcher.on_exit = self._on_exit

    # -- what the driver calls ---------------------------------------------------------------------------

    def start(self, action: ac.Start, entry: Entry) -> None:
        resident = Resident(entry, action.generation, asyncio.get_running_loop().create_future())
        self.residents[action.instance] = resident
        resident.task = self._spawn(self._start(action, resident))

    def sleep(self, action: ac.Sleep, instance: Instance) -> None:
        resident = self.residents[action.instance]
        resident.generation = action.generation
        resident.task = self._spawn(self._sleep(action, instance, resident))

    def wake(self, action: ac.Wake) -> None:
        resident = self.residents[action.instance]
        resident.generation = action.generation
        resident.task = self._spawn(self._wake(action, resident))

    def stop(self, action: ac.Stop | ac.Release, instance: Instance) -> None:
        resident = self.residents.get(action.instance)
        if resident is not None:
            resident.generation = action.generation
        grace = 0.0 if isinstance(action, ac.Release) or action.now else TERM_GRACE
        self._spawn(self._stop(action, instance, resident, grace))

    def fetch(self, entry: Entry) -> None:
        self._fetches[entry.spec.version] = self._spawn(self._fetch(entry))

    def forget(self, version: str) -> None:
        """It was removed: end its fetch, if there is one; nothing is posted of it."""
        if (fetch := self._fetches.pop(version, None)) is not None:
            fetch.cancel()

    def probe(self, action: ac.Probe) -> None:
        self._spawn(self._probe(action))

    def learn(self, instance: Instance, load_seconds: float | None = None, rung: str = "") -> None:
        """Keep how long it took to be ready, after it had slept on this rung or from its start."""
        resident = self.residents.get(instance.id)
        if resident is not None and rung:
            self._observer.keep_asleep(resident.entry, instance, rung, seconds=load_seconds)
        elif resident is not None:
            self._spawn(self._learn(resident, instance, load_seconds))

    async def close(self) -> None:
        """Cancel what is under way; the launcher's own close kills what is left."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=LATEST)
            if late:  # a thread that reads from a disk that does not answer
                log.error("commands.late", count=len(late))
        self._ahead.close()
        for resident in self.residents.values():
            if resident.endpoint is not None:
                resident.endpoint.close()

    # -- tasks -------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("command.failed", exc_info=error)

    async def _start(self, action: ac.Start, resident: Resident) -> None:
        observed = await self._tried(action, self._bring_up(action, resident))
        if observed is not None:
            self._post(ev.Ready(action.instance, action.generation, observed))

    async def _sleep(self, action: ac.Sleep, instance: Instance, resident: Resident) -> None:
        kept = await self._tried(action, self._put_to_sleep(action, instance, resident))
        if kept is not None:
            self._post(ev.Slept(action.instance, action.generation, *kept))
            self._observer.keep_asleep(resident.entry, instance, action.rung.name, kept[1])
            self._spawn(self._observer.look())  # not in this task: while it runs, an exit is left to it

    async def _wake(self, action: ac.Wake, resident: Resident) -> None:
        observed = await self._tried(action, self._wake_up(action, resident))
        if observed is not None:
            self._post(ev.Ready(action.instance, action.generation, observed))

    async def _tried(
        self, action: ac.Start | ac.Sleep | ac.Wake, work: Coroutine[Any, Any, Result]
    ) -> Result | None:
        """What comes of `work`; None when it failed, which was posted then."""
        instance, generation = action.instance, action.generation
        try:
            return await work
        except StartFailed as failure:
            with suppress(Exception):  # somebody may have taken the memory since the last look, or it is lost
                await self._observer.look(ended=None if isinstance(action, ac.Sleep) else instance)
            self._post(ev.Failed(instance, generation, failure.cause, failure.detail))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("start.failed", instance=instance)
            self._post(ev.Failed(instance, generation, Cause.LAUNCH, f"{type(error).__name__}: {error}"))
        return None

    async def _bring_up(self, action: ac.Start, resident: Resident) -> Mapping[str, int]:
        """Launch, wait until it is healthy, have it generate. Raises StartFailed."""
        entry, instance = resident.entry, action.instance
        await self._recheck(entry, instance)
        try:
            address = await self._launcher.start(self._launch(action, entry))
        except LaunchFailed as error:
            cause, advice = refused(error, entry) or (error.cause, "")
            raise StartFailed(cause, f"{error}\n{advice}".strip()) from error
        pool = Pool(address)
        resident.endpoint = Endpoint(instance, entry.spec, entry.engine, address, pool)
        resident.endpoint.on_first_token = partial(self._observer.keep_first_token, entry)
        stop = Event()
        if entry.spec.warm_up.read_ahead and entry.files:
            self._spawn(self._ahead.read(action, entry.files, stop))
        try:
            await self._unless_it_ends(instance, resident, self._warm(action, resident, pool))
        finally:
            stop.set()
        observed: Mapping[str, int] = {}
        if entry.files is not None and not entry.engine.need(entry.spec, entry.files).known:
            observed = await self._observer.measure(instance)
        self._still_there(instance, resident)
        return observed

    def _still_there(self, instance: str, resident: Resident) -> None:
        """Raise StartFailed when its process has ended: `_on_exit` leaves that to a task that is not done."""
        if resident.exit.done():
            raise StartFailed(*self._why(resident.entry, instance, resident.exit.result()))

    async def _unless_it_ends(
        self, instance: str, resident: Resident, work: Coroutine[Any, Any, None]
    ) -> None:
        """Do `work`, which talks to its process. Raises StartFailed when that fails, or the process ends."""
        working = asyncio.ensure_future(work)
        try:
            waits: set[asyncio.Future[Any]] = {working, resident.exit}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise StartFailed(*self._why(resident.entry, instance, resident.exit.result()))
            working.result()
        except (WireError, TimeoutError, probes.WarmUpFailed) as error:
            await asyncio.wait({resident.exit}, timeout=EXIT_NOTICE)
            if resident.exit.done():
                why = self._why(resident.entry, instance, resident.exit.result())
                raise StartFailed(*why) from error
            cause, advice = warm_up_cause(error, resident.entry)
            last = resident.entry.engine.telling(self._launcher.tail(instance, LOG_LINES))
            said = without(str(error), resident.entry.spec.parameters)
            detail = "\n".join(filter(None, (said, advice, last)))
            raise StartFailed(cause, detail) from error
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _put_to_sleep(
        self, action: ac.Sleep, instance: Instance, resident: Resident
    ) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Have it sleep, and wait until its memory is back. Its own bytes before and after, where they can be
        measured. Raises StartFailed."""
        pool, rung = resident.pool, rung_of(resident.entry, action.rung.name)
        before = sleeping.before(instance, action.rung, await self._observer.measure(instance.id))
        await self._unless_it_ends(
            instance.id, resident, probes.ask(pool, rung.sleep, f"sleep ({rung.name})", action.deadline)
        )
        claimed = sleeping.claimed(instance, action.rung)
        most = {device: int(sleeping.LEFT * before.get(device, 0)) for device in claimed}
        after = await self._observer.given_back(instance, most, action.deadline)
        self._still_there(instance.id, resident)
        return before, after

    async def _wake_up(self, action: ac.Wake, resident: Resident) -> Mapping[str, int]:
        """Have it take its memory again, and generate. Raises
        StartFailed. No bytes are observed: it may take them by and by."""
        entry, pool = resident.entry, resident.pool
        rung = rung_of(entry, action.rung.name)
        await self._recheck(entry, action.instance)

        async def wake() -> None:
            await probes.ask(pool, rung.wake, f"wake ({rung.name})", action.deadline)
            await probes.warm_up(pool, entry.engine.warm_up(entry.spec), action.deadline)

        await self._unless_it_ends(action.instance, resident, wake())
        self._still_there(action.instance, resident)
        return {}

    async def _recheck(self, entry: Entry, instance: str) -> None:
        """Its files are what they were. Raises StartFailed; then they are fetched before another start."""
        code, detail = "", "its files are not in the cache any more; they are fetched again"
        try:
            if entry.files is not None and await self._files.recheck(entry, instance):
                return
        except StoreError as error:
            code, detail = error.code, error.message
        entry.files = None
        self._post(ev.FilesLost(entry.spec.version, code, detail))
        raise StartFailed(Cause.LAUNCH, detail)

    def _launch(self, action: ac.Start, entry: Entry) -> Launch:
        files = entry.files or {}

        def command(address: Address) -> Command | Attach:
            return entry.engine.command(entry.spec, entry.profile, action.placement, address, files)

        environment = {**entry.profile.environment, **self._devices.environment(action.placement)}
        listening = entry.engine.listening(entry.spec)
        return Launch(action.instance, command, listening.unix, environment, listening.health)

    async def _warm(self, action: ac.Start, resident: Resident, pool: Pool) -> None:
        entry = resident.entry
        if not pool.address.scheme:  # else it was there before us, and the launcher looked at it already
            await probes.wait_healthy(pool, entry.engine.listening(entry.spec).health)
        self._post(ev.Warming(action.instance, action.generation))
        await probes.warm_up(pool, entry.engine.warm_up(entry.spec), action.deadline)
        await self._learn_languages(entry, pool)

    async def _learn_languages(self, entry: Entry, pool: Pool) -> None:
        """What it translates, if only its server knows."""
        call = entry.engine.languages(entry.spec)
        if call is None:
            return
        try:
            status, body = await pool.fetch(call.method, call.path, call.body, timeout=LANGUAGES_TIMEOUT)
            if status != 200:
                raise ValueError(f"it answered {call.path} with {status}")
            entry.told = entry.engine.read_languages(body)
        except (WireError, TimeoutError, ValueError) as error:
            log.warning("languages.unknown", version=entry.spec.version, reason=str(error) or "no answer")

    def _why(self, entry: Entry, instance: str, exit: Exit) -> tuple[Cause, str]:
        """The cause of an exit, and what to say of it."""
        tail = self._launcher.tail(instance, LOG_LINES)
        return entry.engine.cause(exit, tail), f"{describe(exit)}\n{entry.engine.telling(tail)}".strip()

    async def _stop(
        self, action: ac.Stop | ac.Release, instance: Instance, resident: Resident | None, grace: float
    ) -> None:
        missing: Mapping[str, int] = {}
        own: Mapping[str, int] = {}
        baseline: Mapping[str, int] = {}
        try:
            baseline = await self._observer.baseline(instance)
            # What has woken may take its memory back by and by.
            if instance.ready_at < inf and resident is not None and not instance.woken:
                own = await self._measure(resident, instance.id)  # after all its work: the better footprint
        except Exception:  # it has to stop all the same
            log.exception("measure.failed", instance=action.instance)
        try:
            if resident is not None:
                if resident.task is not None and not resident.task.done():
                    resident.task.cancel()
                    await asyncio.wait({resident.task})
                if resident.endpoint is not None:
                    resident.endpoint.close()
            await self._launcher.stop(action.instance, grace)
            missing = await self._observer.gap(instance, baseline, action.release_cap)
        except Exception:
            log.exception("stop.failed", instance=action.instance)
        self.residents.pop(action.instance, None)
        self._files.let_go(action.instance)
        self._post(ev.Released(action.instance, action.generation, missing))
        if resident is not None:
            self._observer.keep(resident.entry, instance, own)
        await self._observer.look()

    async def _measure(self, resident: Resident, instance: str) -> Mapping[str, int]:
        """Its own bytes per device; none when its main process has ended: what it leaves is no footprint."""
        if resident.exit.done():
            return {}
        own = await self._observer.measure(instance)
        return {} if resident.exit.done() else own

    async def _learn(self, resident: Resident, instance: Instance, load_seconds: float | None) -> None:
        generation = instance.generation
        own = await self._measure(resident, instance.id)
        if instance.generation != generation or instance.ready_at == inf:
            own = {}  # it may sleep by now: what it holds then is not what it needs
        self._observer.keep(resident.entry, instance, own, load_seconds)

    async def _fetch(self, entry: Entry) -> None:
        version = entry.spec.version
        try:
            files = await self._files.fetch(entry, self._on_progress)
            need = self._observer.estimate(entry, files)
            entry.files = files
        except StoreError as error:
            self._post(ev.FetchFailed(version, error.code, error.message))
        except Exception as error:
            log.exception("fetch.failed", version=version)
            self._post(ev.FetchFailed(version, "internal_error", f"{type(error).__name__}: {error}"))
        else:
            self._post(ev.Cached(version, need))

    async def _probe(self, action: ac.Probe) -> None:
        resident = self.residents.get(action.instance)
        found = probes.Health.UNREACHABLE
        if resident is not None and (endpoint := resident.endpoint) is not None:
            if not endpoint.dead:  # else it said all already
                found = await probes.look(endpoint.pool, endpoint.engine.listening(endpoint.spec).health)
            if found is probes.Health.UNREACHABLE:  # how its process ended says more
                await asyncio.wait({resident.exit}, timeout=EXIT_NOTICE)
            if endpoint.dead and not resident.exit.done():
                told = endpoint.engine.telling(self._launcher.tail(action.instance, LOG_LINES))
                why = f"its server says that its engine has ended\n{told}".strip()
                self._post(ev.Exited(action.instance, action.generation, Cause.CRASHED, why))
        alive = found is probes.Health.ANSWERS
        reachable = found is not probes.Health.UNREACHABLE
        self._post(ev.Probed(action.instance, action.generation, alive, reachable))

    def _on_exit(self, instance: str, exit: Exit) -> None:
        """The launcher saw the process end. While it starts, its task says so; later we do."""
        resident = self.residents.get(instance)
        if resident is None or resident.exit.done():
            return
        resident.exit.set_result(exit)
        if resident.task is not None and resident.task.done():
            self._post(ev.Exited(instance, resident.generation, *self._why(resident.entry, instance, exit)))
            self._spawn(self._observer.look())  # its device may be lost
