"""Records of the journal: what the scheduler was told and what it decided, as lines of flat JSON.

`Encoder` makes them of events and actions, for the journal: nothing is decided here and nothing is
looked up in the scheduler. There are names, numbers and reasons in a record, never a prompt, a body, a key,
or what an engine wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.types import OutcomeKind, Priority

LONGEST = 300  # characters of a reason
REMEMBERED = 16_384  # names whose version is known, at most

Fields = dict[str, object]


class Kind(StrEnum):
    """What a record is about; how each is read stands in docs/how-to/explain.md."""

    OPENED = "opened"
    CLOSED = "closed"
    LOST = "lost"
    SNAPSHOT = "snapshot"
    DEVICE = "device"
    MODEL_ADDED = "model_added"
    MODEL_REMOVED = "model_removed"
    POLICY = "policy"
    ARRIVED = "arrived"
    TURNED_AWAY = "turned_away"
    BLOCKED = "blocked"
    GRANT = "grant"
    REFUSE = "refuse"
    CANCEL = "cancel"
    CUT = "cut"
    ATTEMPT = "attempt"
    END = "end"
    FETCH = "fetch"
    FETCHED = "fetched"
    FETCH_FAILED = "fetch_failed"
    FILES_LOST = "files_lost"
    LOAD_ASKED = "load_asked"
    LOADED = "loaded"
    UNLOAD_ASKED = "unload_asked"
    SHUTDOWN = "shutdown"
    START = "start"
    READY = "ready"
    FAILED = "failed"
    LEAVE = "leave"
    STOP = "stop"
    EXITED = "exited"
    RELEASE = "release"
    RELEASED = "released"
    SLEEP = "sleep"
    ASLEEP = "asleep"
    NO_SLEEP = "no_sleep"
    WAKE = "wake"
    GAP = "gap"
    NEED = "need"
    DEVICE_CLOSED = "device_closed"
    DEVICE_OPENED = "device_opened"


_NOTES = frozenset(
    {Kind.BLOCKED, Kind.LEAVE, Kind.READY, Kind.FAILED, Kind.GAP, Kind.NEED}
    | {Kind.DEVICE_CLOSED, Kind.DEVICE_OPENED, Kind.ASLEEP, Kind.NO_SLEEP}
)

_MORE_EVENTS = frozenset({ev.Arrived, ev.Changed})  # told with what was decided, and by their parts


class Queued(NamedTuple):
    """A request that was admitted and waits: what it was told, and where it stands. `place` is that of its
    model among those that want an instance (0: it wants none), `ahead` counts requests for the same model."""

    priority: Priority
    estimate: float
    bound: float
    max_wait: float
    ahead: int
    place: int
    blocked_by: str


@dataclass(slots=True)
class Ended:
    """How a request went, filled in until it ended. `instance` is the last that it had; `started` and
    `first_byte` are loop times, 0 for an answer that never began; tokens are as the engine counted them."""

    request: str
    version: str
    api: str
    started: float
    outcome: str = ""
    attempts: int = 0
    instance: str = ""
    first_byte: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


class Encoder:
    """Events and actions → records. It remembers the version of instances and of requests that wait, for the
    actions that do not name it. `see` is given each record of a step."""

    def __init__(self, see: Callable[[Fields], None] = lambda _: None) -> None:
        self._see = see
        self._versions: dict[str, str] = {}
        self._events: Mapping[type[Any], Callable[[Any], Fields]] = {
            ev.Cancelled: self._cancelled,
            ev.Finished: self._finished,
            ev.Exited: self._exited,
            ev.Released: self._released,
            ev.Cached: self._cached,
            ev.FetchFailed: self._fetch_failed,
            ev.FilesLost: self._files_lost,
            ev.DeviceAdded: self._device,
            ev.Added: self._added,
            ev.Removed: self._removed,
            ev.PolicyChanged: lambda event: {"kind": Kind.POLICY, **_model(event.version)},
            ev.LoadAsked: self._load_asked,
            ev.UnloadAsked: self._unload_asked,
            ev.ShutdownAsked: lambda event: {"kind": Kind.SHUTDOWN, "now": event.now},
        }
        self._actions: Mapping[type[Any], Callable[[Any], Fields]] = {
            ac.Grant: self._grant,
            ac.Refuse: self._refuse,
            ac.Cut: self._cut,
            ac.Fetch: lambda action: {"kind": Kind.FETCH, **_model(action.version)},
            ac.Start: self._start,
            ac.Sleep: self._sleep,
            ac.Wake: self._wake,
            ac.Stop: self._stop,
            ac.Release: self._stop,
            ac.Loaded: self._loaded,
        }

    def tells(self, event: ev.Event) -> bool:
        """Whether an event on which nothing was decided has anything to tell that is told nowhere else. An
        attempt that went well is told with the end of its request."""
        return (type(event) in self._events or type(event) in _MORE_EVENTS) and not _went_well(event)

    def step(
        self, at: float, event: ev.Event, actions: Sequence[ac.Action], api: str, queued: Queued | None
    ) -> list[bytes]:
        """The records of one event and of what was decided on it, in order."""
        lines = []
        for fields in self._records(event, actions, api, queued):
            self._see(fields)
            lines.append(_line(at, fields))
        return lines

    def granted(self, at: float, request: str, version: str, instance: str, api: str) -> list[bytes]:
        """A first arrival that was granted at once. With `ended`, what most requests cost: its text is made
        by hand, of names that are ours and need no escapes."""
        line = (
            f'{{"t":{at:.4f},"kind":"arrived","request":"{request}",{_model_text(version)},'
            f'"api":"{api}","decision":"granted","instance":"{instance}"}}\n'
        )
        return [line.encode()]

    def ended(self, at: float, end: Ended, seconds: float) -> list[bytes]:
        """A request ended, so many seconds after its arrival."""
        instance = f',"instance":"{end.instance}"' if end.instance else ""
        first = f',"first_byte":{end.first_byte - end.started:.4f}' if end.first_byte else ""
        tokens = (
            f',"tokens_in":{end.tokens_in},"tokens_out":{end.tokens_out}'
            if end.tokens_in or end.tokens_out
            else ""
        )
        line = (
            f'{{"t":{at:.4f},"kind":"end","request":"{end.request}",{_model_text(end.version)},'
            f'"api":"{end.api}","outcome":"{end.outcome}","seconds":{seconds:.4f},'
            f'"attempts":{end.attempts}{instance}{first}{tokens}}}\n'
        )
        return [line.encode()]

    def said(self, at: float, kind: Kind, fields: Fields) -> list[bytes]:
        """A record that is flat already."""
        return [_line(at, {"kind": kind, **fields})]

    def _records(
        self, event: ev.Event, actions: Sequence[ac.Action], api: str, queued: Queued | None
    ) -> Iterator[Fields]:
        if isinstance(event, ev.Arrived):
            decision = _decision(event.request, actions)
            actions = [action for action in actions if action is not decision]
            yield self._arrived(event, decision, api, queued)
        else:
            for part in event.parts if isinstance(event, ev.Changed) else (event,):
                if (encode := self._events.get(type(part))) is not None and not _went_well(part):
                    yield encode(part)
        for action in sorted(actions, key=_follows):
            if isinstance(action, ac.Note):
                if (record := self._note(action)) is not None:
                    yield record
            elif (make := self._actions.get(type(action))) is not None:
                yield make(action)
        if isinstance(event, ev.Released):
            self._versions.pop(event.instance, None)

    # -- requests -----------------------------------------------------------------------------------------

    def _arrived(
        self, event: ev.Arrived, decision: ac.Grant | ac.Refuse | None, api: str, queued: Queued | None
    ) -> Fields:
        fields: Fields = {"kind": Kind.ARRIVED, "request": event.request, **_model(event.version)}
        if api:
            fields["api"] = api
        if event.priority is not None:
            fields["priority"] = event.priority.name.lower()
        if event.since is not None:
            fields["again"] = True
        if event.exclude:
            fields["exclude"] = sorted(event.exclude)
        if isinstance(decision, ac.Grant):
            fields.update(decision="granted", instance=decision.instance)
        elif isinstance(decision, ac.Refuse):
            fields.update(decision="refused", code=decision.code, reason=_reason(decision.message))
        elif queued is not None:
            self._remember(event.request, event.version)
            told = queued._asdict()
            told.update(
                priority=queued.priority.name.lower(),
                estimate=round(queued.estimate, 3),
                bound=round(queued.bound, 3),
                max_wait=round(queued.max_wait, 3),
            )
            fields.update(decision="queued", **told)
        return fields

    def _grant(self, action: ac.Grant) -> Fields:
        self._versions.pop(action.request, None)
        told = {"waited": round(action.waited, 4), "loading": round(action.loading, 4)}
        return {"kind": Kind.GRANT, "request": action.request, **self._of(action.instance), **told}

    def _refuse(self, action: ac.Refuse) -> Fields:
        model = _model(self._versions.pop(action.request, ""))
        fields = {"kind": Kind.REFUSE, "request": action.request, **model, "code": action.code}
        return {**fields, "reason": _reason(action.message)}

    def _cancelled(self, event: ev.Cancelled) -> Fields:
        model = _model(self._versions.pop(event.request, ""))
        return {"kind": Kind.CANCEL, "request": event.request, **model}

    def _finished(self, event: ev.Finished) -> Fields:
        of = {"request": event.request, **self._of(event.instance)}
        told = {"rest": event.rest} if event.rest else {}
        return {"kind": Kind.ATTEMPT, **of, "outcome": event.outcome.value, **told}

    def _cut(self, action: ac.Cut) -> Fields:
        of = {"request": action.request, **self._of(action.instance)}
        return {"kind": Kind.CUT, **of, "code": action.code, "reason": _reason(action.message)}

    # -- instances ----------------------------------------------------------------------------------------

    def _start(self, action: ac.Start) -> Fields:
        self._remember(action.instance, action.version)
        placement = {charge.device: charge.bytes for charge in action.placement}
        of = {**self._of(action.instance), "placement": placement}
        return {"kind": Kind.START, **of, "reason": action.reason}

    def _sleep(self, action: ac.Sleep) -> Fields:
        of = {**self._of(action.instance), "rung": action.rung.name}
        return {"kind": Kind.SLEEP, **of, "reason": _reason(action.reason)}

    def _wake(self, action: ac.Wake) -> Fields:
        placement = {charge.device: charge.bytes for charge in action.placement}
        of = {**self._of(action.instance), "rung": action.rung.name}
        return {"kind": Kind.WAKE, **of, "placement": placement, "reason": action.reason}

    def _stop(self, action: ac.Stop | ac.Release) -> Fields:
        kind = Kind.STOP if isinstance(action, ac.Stop) else Kind.RELEASE
        fields: Fields = {"kind": kind, **self._of(action.instance)}
        if isinstance(action, ac.Stop) and action.now:
            fields["now"] = True
        return {**fields, "reason": _reason(action.reason)}

    def _exited(self, event: ev.Exited) -> Fields:
        of = {**self._of(event.instance), "cause": event.cause.value}
        return {"kind": Kind.EXITED, **of, "reason": _reason(event.detail)}

    def _released(self, event: ev.Released) -> Fields:
        fields: Fields = {"kind": Kind.RELEASED, **self._of(event.instance)}
        return {**fields, "missing": dict(event.missing)} if event.missing else fields

    def _note(self, note: ac.Note) -> Fields | None:
        """What notes tell beyond the events and actions of their step."""
        if note.kind not in _NOTES:
            return None
        numbers = {name: round(v, 4) if isinstance(v, float) else v for name, v in note.fields}
        fields: Fields = {"kind": note.kind, **numbers, "reason": _reason(note.message)}
        if note.subject in self._versions:
            return {**fields, **self._of(note.subject)}
        if "@" in note.subject:
            return {**fields, **_model(note.subject)}
        return {**fields, "device": note.subject}

    # -- files, devices, operator -------------------------------------------------------------------------

    def _cached(self, event: ev.Cached) -> Fields:
        return {"kind": Kind.FETCHED, **_model(event.version), "need": event.need.bytes}

    def _fetch_failed(self, event: ev.FetchFailed) -> Fields:
        of = {**_model(event.version), "code": event.code}
        return {"kind": Kind.FETCH_FAILED, **of, "reason": _reason(event.detail)}

    def _files_lost(self, event: ev.FilesLost) -> Fields:
        fields: Fields = {"kind": Kind.FILES_LOST, **_model(event.version)}
        return {**fields, "code": event.code, "reason": _reason(event.detail)} if event.code else fields

    def _device(self, event: ev.DeviceAdded) -> Fields:
        device = event.device
        return {"kind": Kind.DEVICE, "device": device.id, "total": device.total, "budget": device.budget}

    def _added(self, event: ev.Added) -> Fields:
        spec = event.spec
        of = {**_model(spec.version), "engine": spec.engine, "slots": spec.slots}
        return {"kind": Kind.MODEL_ADDED, **of, "need": event.cached.bytes if event.cached else None}

    def _removed(self, event: ev.Removed) -> Fields:
        fields: Fields = {"kind": Kind.MODEL_REMOVED, **_model(event.version)}
        return {**fields, "replaced_by": event.replaced_by} if event.replaced_by else fields

    def _load_asked(self, event: ev.LoadAsked) -> Fields:
        return {"kind": Kind.LOAD_ASKED, **_model(event.version), "evict": event.evict}

    def _unload_asked(self, event: ev.UnloadAsked) -> Fields:
        fields: Fields = {"kind": Kind.UNLOAD_ASKED, **_model(event.version), "now": event.now}
        return {**fields, "instance": event.instance} if event.instance else fields

    def _loaded(self, action: ac.Loaded) -> Fields:
        fields: Fields = {"kind": Kind.LOADED, **_model(action.version)}
        if action.instance is not None:
            return {**fields, "instance": action.instance}
        return {**fields, "code": action.code, "reason": _reason(action.message)}

    # -- names --------------------------------------------------------------------------------------------

    def _remember(self, name: str, version: str) -> None:
        if len(self._versions) >= REMEMBERED:  # the ends of these were lost
            del self._versions[next(iter(self._versions))]
        self._versions[name] = version

    def _of(self, instance: str) -> Fields:
        """An instance, with its model beside it."""
        return {"instance": instance, **_model(self._versions.get(instance, ""))}


def _went_well(event: ev.Event) -> bool:
    return type(event) is ev.Finished and event.outcome is OutcomeKind.DONE and not event.rest


def _follows(action: ac.Action) -> bool:
    """What follows from a failure is told after it."""
    return not (isinstance(action, ac.Note) and action.kind == Kind.FAILED)


def _decision(request: str, actions: Sequence[ac.Action]) -> ac.Grant | ac.Refuse | None:
    for action in actions:
        if isinstance(action, ac.Grant | ac.Refuse) and action.request == request:
            return action
    return None


def _line(at: float, fields: Fields) -> bytes:
    return orjson.dumps({"t": round(at, 4), **fields}, option=orjson.OPT_APPEND_NEWLINE)


@lru_cache(1024)
def _model_text(version: str) -> str:
    """`_model` as JSON, without its braces."""
    return orjson.dumps(_model(version))[1:-1].decode()


def _model(version: str) -> Fields:
    """The model of a version (`qwen@3f9a0c12be47`), beside it."""
    return {"model": version.rpartition("@")[0], "version": version}


def _reason(text: str) -> str:
    """The first line: what follows is the end of an engine's log."""
    return text.partition("\n")[0][:LONGEST]
