"""Traces that are logs: our own journal, access logs, JSON lines; and which kind a file is.

See `sim/lines.py` for what `take` promises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from modelyard.sim.choices import Format
from modelyard.sim.lines import Csv, Lines, RecordedServer, Request, count_of, first_of, number_of, record_of

# -- our own journal --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Course:
    """A request of the journal that has not ended. `granted`: when it got its slot."""

    at: float
    model: str
    granted: float | None


_OF_THE_YARD = frozenset({"device", "model_added", "start", "ready", "released", "snapshot"})


class Journal(Lines):
    """`GET /admin/journal`, as JSON lines. Service is from the grant of a slot to the end; retries are no
    arrivals."""

    format = Format.JOURNAL
    what = "a journal of Modelyard"
    server: RecordedServer

    def __init__(self) -> None:
        super().__init__()
        self._courses: dict[str, _Course] = {}
        self._starts: dict[str, float] = {}  # by instance
        self._closed = False
        self._without_start = 0
        self.server = RecordedServer()

    @property
    def waiting(self) -> int:
        return len(self._courses)

    @classmethod
    def knows(cls, line: str) -> bool:
        record = record_of(line)
        return record is not None and "kind" in record and "t" in record

    def take(self, line: str) -> Iterable[Request]:
        record = record_of(line)
        if record is None:
            raise ValueError("is no JSON object")
        kind, name = str(record.get("kind")), str(record.get("request", ""))
        if kind == "arrived" and not record.get("again") and not self._closed:
            self._courses[name] = self._begun(record)
        elif kind == "grant" and (course := self._courses.get(name)) is not None and course.granted is None:
            course.granted = self.clock.seconds(record.get("t"))
        if kind in ("end", "refuse", "cancel") or record.get("decision") == "refused":
            if (ended := self._courses.pop(name, None)) is not None:
                return [self._ended(ended, record)]
            self._without_start += kind == "end" and not self._closed
        elif kind in _OF_THE_YARD:
            self._look(record)
        return ()

    def _look(self, record: Mapping[str, Any]) -> None:
        """Note what a record tells of the server; one that is not whole tells nothing."""
        server, model, instance = self.server, record.get("model"), record.get("instance")
        match record:
            case {"kind": "device", "device": str(device), "budget": int(budget)}:
                server.devices[device] = budget
            case {"kind": "model_added", "model": str(name), "slots": int(slots)}:
                server.slots[name] = slots
            case {"kind": "snapshot", "device": str(device), "budget": int(budget)}:
                server.devices[device] = budget
            case {"kind": "snapshot", "model": str(name), "slots": int(slots)}:
                server.slots[name] = slots
                if isinstance(placement := record.get("placement"), dict):
                    server.models[name] = _bytes_of(placement)
                if isinstance(seconds := record.get("load"), int | float):
                    server.loads[name] = number_of(seconds, "load")
            case {"kind": "start", "model": str(name), "placement": dict(placement)}:
                server.models[name] = _bytes_of(placement)
                self._starts[str(instance)] = self.clock.seconds(record.get("t"))
            case {"kind": "ready"} if (began := self._starts.pop(str(instance), None)) is not None:
                server.loads[str(model)] = max(0.0, self.clock.seconds(record.get("t")) - began)
            case {"kind": "released"}:
                self._starts.pop(str(instance), None)
            case _:
                pass

    def _begun(self, record: Mapping[str, Any]) -> _Course:
        at, model = self.clock.seconds(record.get("t")), record.get("model")
        if not isinstance(model, str) or not model or "request" not in record:
            raise ValueError("an arrival without its request or model")
        return _Course(at, model, at if record.get("decision") == "granted" else None)

    def _ended(self, course: _Course, record: Mapping[str, Any]) -> Request:
        served = course.granted is not None and record.get("kind") == "end"
        service = max(0.0, self.clock.seconds(record.get("t")) - (course.granted or 0.0)) if served else None
        tokens = [count_of(record.get(name, 0), name) for name in ("tokens_in", "tokens_out")]
        return Request(course.at, tokens[0], tokens[1], course.model, service)

    def close(self) -> None:
        self._closed = True

    def end(self) -> Iterable[Request]:
        left = [Request(course.at, model=course.model) for course in self._courses.values()]
        self._courses.clear()
        return left

    def notes(self) -> list[str]:
        if not self._without_start:
            return []
        return [f"{self._without_start:,} requests whose arrival is not in it were left out"]


def _bytes_of(placement: Mapping[str, object]) -> dict[str, int]:
    return {on: size for on, size in placement.items() if isinstance(size, int)}


# -- access logs ------------------------------------------------------------------------------------------

API = re.compile(
    r"/(chat/completions|completions?|embeddings?|responses|messages|rerank|infill|generate|transcriptions"
    r"|speech|translations|generations|api/chat|api/embed|batch_translate|translate)/?$"
)
_COMBINED = re.compile(
    r'\S+ \S+ (?:"[^"]*"|\S+) \[(?P<time>[^\]]+)\] '
    r'"(?P<method>\S+) (?P<target>\S+)[^"]*" \d{3} (?:\d+|-)(?P<rest>.*)'
)
_TOOK = re.compile(r"""\b(?:request_time|rt|duration|took)["']?[=:]["']?(\d+(?:\.\d+)?)\b""")
_LAST_NUMBER = re.compile(r"\s(\d+\.\d+)\s*$")
_NAMED = re.compile(r"""\bmodel["']?[=:]["']?([^\s"',;]+)""")


class Access(Lines):
    """nginx's or Apache's combined log. What may follow it: the seconds that it took (`rt=0.123`,
    `request_time=0.123`, or a last field like 0.123) and `model=NAME`; a model is also read from the query
    (`?model=NAME`) and from `/upstream/NAME/`. A line is written when its request ends."""

    format = Format.ACCESS
    what = "an access log in the combined format: POSTs to the API paths; a line's time is its request's end"

    @classmethod
    def knows(cls, line: str) -> bool:
        return _COMBINED.match(line) is not None

    def take(self, line: str) -> Iterable[Request]:
        match = _COMBINED.match(line)
        if match is None:
            raise ValueError("is not in the combined format")
        if not _is_request(match["method"], match["target"]):
            return ()
        rest = match["rest"]
        took = _TOOK.search(rest) or _LAST_NUMBER.search(rest)
        service = float(took[1]) if took else None
        named = _NAMED.search(rest)
        model = named[1] if named else _model_in(match["target"])
        return [Request(self.clock.seconds(match["time"]) - (service or 0.0), model=model, service=service)]


class JsonLines(Lines):
    """JSON lines of a proxy or of another server: a time; a model, a path or tokens; seconds or milliseconds
    that it took. A line's time is the end of its request, as in access logs."""

    format = Format.JSON
    what = "JSON lines: time, model or path, duration, tokens; a line's time is its request's end"

    @classmethod
    def knows(cls, line: str) -> bool:
        record = record_of(line)
        return record is not None and first_of(record, _JSON_TIME) is not None

    def take(self, line: str) -> Iterable[Request]:
        record = record_of(line)
        if record is None:
            raise ValueError("is no JSON object")
        if (when := first_of(record, _JSON_TIME)) is None:
            raise ValueError("has no time (time, timestamp, ts …)")
        method, target = _target(record)
        model = first_of(record, ("model", "model_name")) or _model_in(target)
        tokens = [count_of(first_of(record, names) or 0, names[0]) for names in (_JSON_IN, _JSON_OUT)]
        if target and not _is_request(method or "POST", target):
            return ()
        if not (target or model or any(tokens)):
            raise ValueError("has no model, path or tokens")
        service = _took(record)
        at = self.clock.seconds(when) - (service or 0.0)
        return [Request(at, tokens[0], tokens[1], str(model), service)]


_JSON_TIME = ("time", "timestamp", "@timestamp", "ts", "time_iso8601", "time_local", "msec", "t", "date")
_JSON_IN = ("tokens_in", "input_tokens", "prompt_tokens", "context_tokens", "ContextTokens")
_JSON_OUT = ("tokens_out", "output_tokens", "completion_tokens", "generated_tokens", "GeneratedTokens")
_SECONDS = ("duration", "request_time", "seconds", "elapsed", "took", "latency", "upstream_response_time")
_MILLISECONDS = ("duration_ms", "latency_ms", "elapsed_ms", "took_ms", "response_time_ms")


def _target(record: Mapping[str, Any]) -> tuple[str, str]:
    """Method and path of a JSON line: flat, as nginx writes them in one string, or nested as Caddy does."""
    request = record.get("request")
    if isinstance(request, Mapping):
        record = request
    elif isinstance(request, str) and len(words := request.split()) >= 2:
        return words[0], words[1]
    target = first_of(record, ("path", "uri", "request_uri", "url"))
    method = first_of(record, ("method", "request_method"))
    return str(method or ""), str(target or "")


def _took(record: Mapping[str, Any]) -> float | None:
    for names, unit in ((_SECONDS, 1.0), (_MILLISECONDS, 0.001)):
        value = first_of(record, names)
        if value not in (None, "", "-"):
            return number_of(str(value).partition(",")[0], names[0]) * unit
    return None


def _is_request(method: str, target: str) -> bool:
    return method.upper() == "POST" and API.search(urlsplit(target).path) is not None


def _model_in(target: str) -> str:
    parts = urlsplit(target)
    named = parse_qs(parts.query).get("model")
    if named:
        return named[0]
    upstream = re.match(r"/upstream/([^/]+)/", parts.path)
    return upstream[1] if upstream else ""


FORMATS: Mapping[str, type[Lines]] = {kind.format: kind for kind in (Csv, Journal, Access, JsonLines)}


def detect(sample: Sequence[str]) -> Lines | None:
    """The kind of a file, from its first lines; a CSV by its first, the others by most of them."""
    lines = [line for line in sample if line.strip()]
    if Csv.knows(lines[0]):
        return Csv()
    counts = {kind: sum(map(kind.knows, lines)) for kind in (Journal, Access, JsonLines)}
    best = max(counts, key=lambda kind: counts[kind])
    return best() if counts[best] * 2 >= len(lines) else None
