"""One run of some events on a copy of a scheduler, recorded as steps, until nothing follows from them.

Part of `plan`. The run tells of what it is about: the versions that the events name, whoever leaves for them,
and, when memory becomes free, the versions in line for it and the home models that come back. Everything else
goes on in the copy as well, untold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.capacity import LOOKAHEAD
from modelyard.core.copying import copy_of
from modelyard.core.lifecycle import FilesState, InstanceState
from modelyard.core.outlook import Outlook, usual
from modelyard.core.readings import away_from_home, contenders
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import COMING, LEAVING, Instance, State

EVENTS = 1_000  # handled in one run
HORIZON = 3600.0  # seconds that a run looks ahead
STEPS = 500  # told of one run

SCORE = ("rung", "cost", "standing", "spared")  # of a leave, what is told
TRANSIT = LEAVING | COMING


class Does(StrEnum):
    FETCH = "fetch"  # its files
    START = "start"
    READY = "ready"
    LEAVE = "leave"  # no new requests; it stops or sleeps at once, or when what runs has ended
    STOP = "stop"  # what ran has ended, or the drain cap passed
    SLEEP = "sleep"  # what ran has ended
    GONE = "gone"  # its memory is back
    ASLEEP = "asleep"  # its memory is back, but for what it holds asleep
    WAKE = "wake"
    FAIL = "fail"
    CUT = "cut"  # running requests
    GRANT = "grant"  # the planned request has its slot
    REFUSE = "refuse"  # waiting requests, or the planned one
    LOADED = "loaded"  # the planned load was answered


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """`at`: seconds from the plan's moment. `instance` is empty for one that is started by the plan, `bytes`
    is by device, `count` is of requests, `score` is why this one and no other leaves. `seconds`: how long it
    is expected to take."""

    at: float
    does: Does
    version: str
    model: str
    instance: str = ""
    bytes: tuple[tuple[str, int], ...] = ()
    reason: str = ""
    winner: str = ""  # the version that it leaves for
    code: str = ""
    count: int = 0
    seconds: float = 0.0
    score: tuple[tuple[str, str | int | float], ...] = ()
    exact: bool = True  # False: takes all that is free, because nobody measured its footprint

    @property
    def key(self) -> tuple[object, ...]:
        """What has to be the same when it is done: not its time, nor numbers that go with the time."""
        held = self.bytes if self.exact else tuple(device for device, _ in self.bytes)
        return self.does, self.version, self.instance, held, self.winner, self.code


def flat(events: Iterable[ev.Event]) -> Iterator[ev.Event]:
    """The events, with the parts of those that have parts."""
    for event in events:
        if isinstance(event, ev.Changed):
            yield from flat(event.parts)
        else:
            yield event


def named(events: Iterable[ev.Event]) -> list[str]:
    """The versions that the events are about, each once."""
    keys: dict[str, None] = {}
    for event in flat(events):
        key = event.spec.version if isinstance(event, ev.Added) else getattr(event, "version", "")
        if key:
            keys[key] = None
    return list(keys)


def only_asks(events: Iterable[ev.Event]) -> bool:
    """Whether each of these events is answered when somebody has what it asks for."""
    return all(isinstance(event, ev.Arrived | ev.LoadAsked) for event in events)


def about(state: State, events: Sequence[ev.Event]) -> list[str]:
    """The versions that a run of these events tells of."""
    keys = dict.fromkeys(named(events))
    parts = list(flat(events))
    if any(isinstance(event, ev.DeviceAdded | ev.DeviceSeen | ev.ShutdownAsked) for event in parts):
        keys |= dict.fromkeys(key for _, key in islice(state.line, LOOKAHEAD))
    if not only_asks(events):
        keys |= dict.fromkeys(contenders(state, keys))
        keys |= dict.fromkeys(away_from_home(state))
    return list(keys)


class DryRun:
    """A run, which is over when it has been made. `steps`: in order, `at_once` of them decided when the
    events came. `named`: the versions of the events; `about`: all that it tells of; `waits`: who stood in
    line then, unhelped. `open`: what it could not know, in words; `after`: the copy in its last state.
    Without `later` no time passes: only what is decided at once is told."""

    def __init__(
        self,
        original: Scheduler,
        events: Sequence[ev.Event],
        now: float,
        stop: float,
        *,
        later: bool = True,
    ) -> None:
        self.steps: list[PlannedStep] = []
        self.after = copy_of(original)
        self.named, self.about = named(events), about(original.state, events)
        self._original, self._events = original.state, events
        self._started = now
        self._outlook = Outlook(self.after, now, stop)
        self._told, self._only_asks = frozenset(self.about), only_asks(events)
        leaving = {name for name, each in original.state.instances.items() if each.state in LEAVING}
        self._left, self._draining = leaving, leaving.copy()
        self._going: set[str] = set()
        self._asked = {event.version for event in flat(events) if isinstance(event, ev.LoadAsked)}
        self._requests = {
            event.request: event.version for event in flat(events) if isinstance(event, ev.Arrived)
        }
        self._open = set(self._asked) | set(self._requests)
        for event in events:
            self._post(event)
        self.at_once = len(self.steps)
        self.waits = [key for key in self.about if self._waits(key)]
        self.open = self._run() if later else []

    # -- time -------------------------------------------------------------------------------------------

    def _run(self) -> list[str]:
        """Let time pass; what is left open."""
        if self._is_over():
            return self._unknown()
        for event in islice(self._outlook.coming(), EVENTS):
            if self._outlook.now - self._started > HORIZON or len(self.steps) >= STEPS:
                break
            self._post(event)
            if self._is_over():
                return self._unknown()
        return self._unknown() or [
            f"what comes later than {self._outlook.now - self._started:.0f} s from now, or after {EVENTS} "
            "events, was not looked at"
        ]

    def _is_over(self) -> bool:
        state = self.after.state
        fetched = {key for key in self.about if self._fetches(key)}
        if any(self._requests.get(name, name) not in fetched for name in self._open):
            return False
        if not self._going.isdisjoint(state.instances):
            return False
        if self._only_asks:
            return True
        if any(self._stands(key) or self._moves(key) for key in self._told - fetched):
            return False
        homes = not self._told.isdisjoint(away_from_home(state))
        return not (homes and not len(state.line) and state.timers.when(("plan", "")) is not None)

    def _stands(self, key: str) -> bool:
        return key in self.after.state.line

    def _waits(self, key: str) -> bool:
        """Whether it stands in line for memory that nobody has begun to free for it."""
        version = self.after.state.versions.get(key)
        cached = version is not None and version.files is FilesState.CACHED
        return cached and self._stands(key) and all(step.winner != key for step in self.steps)

    def _moves(self, key: str) -> bool:
        version = self.after.state.versions.get(key)
        return version is not None and any(each.state in TRANSIT for each in version.instances.values())

    def _fetches(self, key: str) -> bool:
        """Whether its files come, nobody knows when."""
        version = self.after.state.versions.get(key)
        return version is not None and version.files is FilesState.FETCHING

    def _unknown(self) -> list[str]:
        return [
            f"the files of {self.after.state.versions[key].spec.model} are not here: what it needs, and what "
            "follows, is known when they are"
            for key in self.about
            if self._fetches(key)
        ]

    # -- what is told -----------------------------------------------------------------------------------

    def _post(self, event: ev.Event) -> None:
        state = self.after.state
        before = state.instances.get(getattr(event, "instance", None) or "")
        actions = self._outlook.post(event)
        if before is not None and isinstance(event, ev.Ready) and before.state is InstanceState.READY:
            self._tell(Does.READY, before, bytes=_bytes(before))
        elif before is not None and before.id not in state.instances:
            self._tell(Does.GONE, before, bytes=_bytes(before))
        refused: dict[tuple[str, str], ac.Refuse] = {}
        counts: dict[tuple[str, str], int] = {}
        for action in actions:
            if isinstance(action, ac.Refuse):
                key = (self._version_of(action.request), action.code)
                refused.setdefault(key, action)
                counts[key] = counts.get(key, 0) + 1
                self._open.discard(action.request)
            else:
                self._tell_of(action)
        for (version, code), action in refused.items():
            self._say(Does.REFUSE, version, reason=action.message, code=code, count=counts[version, code])

    def _version_of(self, request: str) -> str:
        waiting = self._original.waiting.get(request)
        return waiting.version if waiting is not None else self._requests[request]

    def _tell_of(self, action: ac.Action) -> None:
        state = self.after.state
        match action:
            case ac.Start(name, _, key, _, _, reason):
                instance, seconds = state.instances[name], state.versions[key].usual_load()
                self._tell(Does.START, instance, bytes=_bytes(instance), reason=reason, seconds=seconds)
            case ac.Sleep(name, _, rung, _, reason) if name in self._draining:
                self._tell(Does.SLEEP, state.instances[name], reason=reason, score=(("rung", rung.name),))
            case ac.Note("asleep", name):
                for names in (self._going, self._left, self._draining):
                    names.discard(name)
                self._tell(Does.ASLEEP, state.instances[name])
            case ac.Wake(name, _, _, _, _, reason):
                instance, seconds = state.instances[name], usual(state.instances[name])
                self._tell(Does.WAKE, instance, bytes=_bytes(instance), reason=reason, seconds=seconds)
            case ac.Note("leave", name, reason, fields):
                self._leave(state.instances[name], reason, dict(fields))
            case ac.Stop(name, _, _, reason):
                instance = state.instances[name]
                if name not in self._left:
                    self._leave(instance, reason, {})
                elif instance.id in self._draining:
                    self._tell(Does.STOP, instance, reason=reason)
            case ac.Release(name, _, _, reason):
                self._tell(Does.FAIL, state.instances[name], reason=reason)
            case ac.Cut(_, name, code, message):
                self._cut(state.instances[name], code, message)
            case ac.Fetch(key):
                self._say(Does.FETCH, key)
            case ac.Grant(request, name) if request in self._requests:
                self._open.discard(request)
                self._tell(Does.GRANT, state.instances[name])
            case ac.Loaded(key, name, code, message) if key in self._open:
                self._open.discard(key)
                kept = name if name in self._original.instances else ""
                self._say(Does.LOADED, key, instance=kept or "", code=code, reason=message)

    def _leave(self, instance: Instance, reason: str, fields: dict[str, str | int | float]) -> None:
        self._left.add(instance.id)
        running = int(fields.get("running", 0))
        if running:
            self._draining.add(instance.id)
        score = tuple((name, fields[name]) for name in SCORE if name in fields)
        if self._tell(
            Does.LEAVE, instance, bytes=_bytes(instance), reason=reason, count=running, score=score
        ):
            self._going.add(instance.id)

    def _cut(self, instance: Instance, code: str, message: str) -> None:
        """Those of one instance that are cut at a time are told as one."""
        last = self.steps[-1] if self.steps else None
        if last is not None and last.does is Does.CUT and last.reason == message and last.at == self._at:
            self.steps[-1] = replace(last, count=last.count + 1)
        else:
            self._tell(Does.CUT, instance, reason=message, code=code, count=1)

    @property
    def _at(self) -> float:
        return self._outlook.now - self._started

    def _tell(self, does: Does, instance: Instance, **more: object) -> bool:
        """Of an instance; False when it is none of this run's business."""
        version, winner = instance.version, instance.leaving_for
        kept = instance.id if instance.id in self._original.instances else ""
        known = version.need is None or version.need.known
        return self._say(does, version.key, winner=winner, instance=kept, exact=known, **more)

    def _say(self, does: Does, version: str, *, winner: str = "", **more: object) -> bool:
        if version not in self._told and winner not in self._told:
            return False
        model = version.rpartition("@")[0]
        self.steps.append(PlannedStep(self._at, does, version, model, winner=winner, **more))  # type: ignore[arg-type]
        return True


def _bytes(instance: Instance) -> tuple[tuple[str, int], ...]:
    return tuple((charge.device, charge.whole) for charge in instance.placement)
