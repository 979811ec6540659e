"""The journal read back: its export, and what it says of one request or one model, in order.

Called by `gateway/admin.py`. A pass over the journal takes what it needs of each record and forgets the rest,
so its memory is bounded whatever the journal's size; what it yields is made in a thread. The sentences are
those of `gateway/telling.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from modelyard.errors import ModelNotFound, NotFound
from modelyard.gateway import views
from modelyard.gateway.follow import Place
from modelyard.gateway.names import Names
from modelyard.gateway.telling import sentence
from modelyard.runtime.journal import Journal, in_thread
from modelyard.runtime.journal_records import Kind

REQUEST_ID = re.compile(r"r[0-9a-f]{8}-\d{1,18}")
MOST_LINES = 10_000  # that an export may be limited to: so many are held
STORY = 400  # records of one request's story; its own are told beyond that
MODEL_STORY = 100  # records of one model's story: the last
_PIECE = 500  # lines that are sent together

Json = dict[str, Any]

_ABOUT_REQUESTS = frozenset(
    {Kind.ARRIVED, Kind.GRANT, Kind.REFUSE, Kind.CANCEL, Kind.CUT, Kind.ATTEMPT, Kind.END}
)
_ABOUT_ALL = frozenset(
    {Kind.OPENED, Kind.CLOSED, Kind.LOST, Kind.SHUTDOWN, Kind.DEVICE_CLOSED, Kind.DEVICE_OPENED}
)
_BEFORE = (
    *(Kind.START, Kind.WAKE, Kind.READY, Kind.FAILED),
    *(Kind.LEAVE, Kind.ASLEEP, Kind.RELEASED, Kind.OPENED),
)
_SNAPSHOT_MARK = b'"kind":"%b"' % Kind.SNAPSHOT.encode()
_BEFORE_MARKS = tuple(b'"kind":"%b"' % kind.encode() for kind in _BEFORE)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records an export holds. `limit`: the last so many; None: all."""

    since: float | None = None
    model: str | None = None
    request: str | None = None
    kinds: Collection[Kind] = ()
    limit: int | None = None

    def lines(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Whole lines, some at a time. Reads from the disk."""
        if self.limit is not None:
            last = deque((line for block in blocks for line in self._of(block)), maxlen=self.limit)
            while last:
                yield b"".join(last.popleft() for _ in range(min(_PIECE, len(last))))
            return
        for block in blocks:
            if chosen := b"".join(self._of(block)):
                yield chosen

    def _of(self, block: bytes) -> Iterator[bytes]:
        for line in block.splitlines(keepends=True):
            record = _parsed(line)
            if record is not None and self._wants(record):
                yield line

    def _wants(self, record: Json) -> bool:
        return (
            (self.since is None or record["t"] >= self.since)
            and (self.model is None or self.model in (record.get("model"), record.get("for")))
            and (self.request is None or record.get("request") == self.request)
            and (not self.kinds or record["kind"] in self.kinds)
        )


async def export(journal: Journal, place: Place, chosen: Selection) -> AsyncIterator[bytes]:
    """The chosen records as lines of JSON, the oldest first; ends when the key that it came with is in force
    no more."""
    with place() as may_go_on:
        async for piece in in_thread(chosen.lines(await journal.read())):
            if not may_go_on():
                return
            yield piece


@dataclass(slots=True)
class Pass:
    """What one pass over the journal finds beside its story: the time that the journal covers."""

    oldest: float = 0.0
    newest: float = 0.0
    story: list[Json] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)

    def covered(self) -> str:
        """For people: from when to when."""
        if not self.oldest:
            return "which is empty"
        return f"which goes from {_moment(self.oldest)} to {_moment(self.newest)}"

    def see(self, block: bytes) -> list[bytes]:
        """The lines of a block that say what happened."""
        lines = [line for line in block.splitlines(keepends=True) if _SNAPSHOT_MARK not in line]
        if not self.oldest and lines and (first := _parsed(lines[0])) is not None:
            self.oldest = first["t"]
        if lines and (last := _parsed(lines[-1])) is not None:
            self.newest = last["t"]
        return lines


def of_request(blocks: Iterable[bytes], request: str) -> Pass:
    """A request's story: its own records, and while it waited those of its model and of who left for it."""
    seen = Pass()
    mark = b'"request":' + orjson.dumps(request)
    course: _Course | None = None
    under_way: dict[str, Json] = {}  # by instance: its start until it is ready, its leaving until it is gone
    for block in blocks:
        if course is not None and course.over:
            break
        for line in seen.see(block):
            if course is None and mark in line and (record := _parsed(line)) is not None:
                course = _Course(request, record.get("model", ""), seen.story)
                course.story.extend(one for one in under_way.values() if course.concerns(one))
                course.take(record)
            elif course is None:
                if any(kind in line for kind in _BEFORE_MARKS) and (record := _parsed(line)) is not None:
                    _note_under_way(under_way, record)
            elif not course.over and (record := _parsed(line)) is not None:
                course.take(record)
    return seen


def _note_under_way(under_way: dict[str, Json], record: Json) -> None:
    name = record.get("instance", "")
    if record["kind"] == Kind.OPENED:  # whoever was under way ended with the run before
        under_way.clear()
    elif record["kind"] in (Kind.START, Kind.WAKE, Kind.LEAVE):
        under_way[name] = record
    else:
        under_way.pop(name, None)


class _Course:
    """Picks the records that matter to one request, in the order of the journal."""

    def __init__(self, request: str, model: str, story: list[Json]) -> None:
        self.request = request
        self.model = model
        self.story = story
        self.over = False
        self._waits = True
        self._instance = ""  # that it holds a slot of
        self._leaving: set[str] = set()  # for its model

    def take(self, record: Json) -> None:
        own = record.get("request") == self.request
        if own or (len(self.story) < STORY and self.concerns(record)):
            self.story.append(record)
        if own:
            self._follow(record)
        elif record["kind"] == Kind.OPENED:  # its run ended without a word
            self.over = True

    def _follow(self, record: Json) -> None:
        kind = record["kind"]
        if kind == Kind.GRANT or record.get("decision") == "granted":
            self._waits, self._instance = False, record["instance"]
        elif kind == Kind.ARRIVED:
            self._waits, self._instance = True, ""
        elif kind in (Kind.END, Kind.TURNED_AWAY):
            self.over = True

    def concerns(self, record: Json) -> bool:
        """Whether somebody else's record is a part of this story."""
        kind, instance = record["kind"], record.get("instance", "")
        if kind in _ABOUT_REQUESTS:
            return kind == Kind.CUT and instance in self._leaving
        if kind in _ABOUT_ALL:
            return True
        if kind == Kind.BLOCKED and self.story and self.story[-1].get("blocked_by") == record["reason"]:
            return False  # its arrival says so
        if not self._waits:
            return bool(instance) and instance == self._instance
        if record.get("for") == self.model or _makes_room(record, self.model):
            self._leaving.add(instance)
        return record.get("model") == self.model or instance in self._leaving


def _makes_room(record: Json, model: str) -> bool:
    """A victim that was still starting has no `leave` of its own."""
    return record["kind"] == Kind.STOP and str(record["reason"]).startswith(f"makes room for {model} ")


def of_model(blocks: Iterable[bytes], model: str) -> Pass:
    """The last of what happened to a model, and how many of its requests ended how."""
    seen = Pass()
    name = orjson.dumps(model)
    marks = (b'"model":' + name, b'"for":' + name)
    last: deque[Json] = deque(maxlen=MODEL_STORY)
    for block in blocks:
        for line in seen.see(block):
            if not any(mark in line for mark in marks) or (record := _parsed(line)) is None:
                continue
            if record["kind"] == Kind.END:
                seen.requests[record["outcome"]] += 1
            elif record["kind"] not in _ABOUT_REQUESTS:
                last.append(record)
    seen.story.extend(last)
    return seen


async def explain(journal: Journal, names: Names, name: str) -> views.Explanation:
    """The story of a request or a model. Raises NotFound, with what the journal covers."""
    if REQUEST_ID.fullmatch(name):
        found = await asyncio.to_thread(of_request, await journal.read(), name)
        if not found.story:
            message = f"There is no request {name} in the journal, {found.covered()}."
            raise NotFound(f"{message} An id stands in an answer's header x-modelyard-request.")
        own = [record for record in found.story if record.get("request") == name]
        model, ended = own[0].get("model", ""), own[-1]["kind"] in (Kind.END, Kind.TURNED_AWAY)
        return _explanation("request", name, model, ended, found)
    unknown = ""
    try:
        model = names.resolve(name).spec.model
    except ModelNotFound as error:
        model, unknown = name, error.message  # it may have been removed
    found = await asyncio.to_thread(of_model, await journal.read(), model)
    if unknown and not found.story:
        raise NotFound(f"{unknown} Nor is it a request or a model of the journal, {found.covered()}.")
    return _explanation("model", name, model, False, found)


def _explanation(
    about: Literal["request", "model"], name: str, model: str, ended: bool, found: Pass
) -> views.Explanation:
    return views.Explanation(
        about=about,
        id=name,
        model=model,
        ended=ended,
        kept_since=found.oldest,
        requests=dict(found.requests),
        story=told(found),
    )


def told(found: Pass) -> list[views.StoryLine]:
    """The story in sentences; a reason is not said twice."""
    lines = []
    why: dict[str, str] = {}  # by instance: the reason that was said last
    for record in found.story:
        shown, name = record, record.get("instance", "")
        if record["kind"] in (Kind.LEAVE, Kind.FAILED):
            why[name] = record["reason"]
        elif record["kind"] in (Kind.STOP, Kind.RELEASE) and why.get(name) == record["reason"]:
            shown = {**record, "reason": ""}
        lines.append(views.StoryLine(at=record["t"], kind=record["kind"], text=sentence(shown)))
    return lines


def _parsed(line: bytes) -> Json | None:
    """The record of a line; None for one that is torn."""
    try:
        record = orjson.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record and "t" in record else None


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
