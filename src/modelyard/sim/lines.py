"""Lines of a trace → requests. One class for each kind of file; `sim/inputs.py` drives them.

`take` raises ValueError for a line that cannot be read, with what is wrong in it. What a line says without
being a request (another path of a server, a record about an instance) is passed over.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit


@dataclass(slots=True)
class Request:
    """One arrival, in seconds. `model` is empty where the trace names none; `service` is how long it held its
    slot, in seconds, None where that was not recorded."""

    at: float
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""
    service: float | None = None


class Lines:
    """A kind of trace. `waiting`: requests whose end has not been read yet."""

    format: ClassVar[str]
    what: ClassVar[str]

    @property
    def waiting(self) -> int:
        return 0

    @classmethod
    def knows(cls, line: str) -> bool:
        """Whether a line is one of this kind."""
        raise NotImplementedError

    def take(self, line: str) -> Iterable[Request]:
        raise NotImplementedError

    def close(self) -> None:
        """No request that begins from now on is wanted."""

    def end(self) -> Iterable[Request]:
        """What is left at the end of the file."""
        return ()

    def notes(self) -> list[str]:
        """What people have to be told of how it was read."""
        return []


# -- CSV --------------------------------------------------------------------------------------------------

_TIME = ("timestamp", "time", "arrival", "arrivaltime", "arrivedat", "arrivaltimestamp", "ts", "starttime")
_IN = (
    "contexttokens",
    "inputtokens",
    "prompttokens",
    "requesttokens",
    "numprefilltokens",
    "inputlength",
    "tokensin",
)
_OUT = (
    *("generatedtokens", "outputtokens", "completiontokens", "responsetokens", "numdecodetokens"),
    *("outputlength", "tokensout"),
)
_MODEL = ("model", "modelname", "modelid")


class Csv(Lines):
    """Comma, semicolon or tab between the columns; the first line names them."""

    format = "csv"
    what = "a CSV of arrivals"

    def __init__(self) -> None:
        self._columns: dict[str, int] | None = None
        self._delimiter = ","
        self._width = 0

    @classmethod
    def knows(cls, line: str) -> bool:
        columns = _columns(line)[1]
        return {"time", "in", "out"} <= columns.keys()

    def take(self, line: str) -> Iterable[Request]:
        if self._columns is None:
            self._delimiter, columns = _columns(line)
            missing = {"time", "in", "out"} - columns.keys()
            if missing:
                names = {"time": "timestamp", "in": "input tokens", "out": "output tokens"}
                raise ValueError(
                    f"the header has no column {', '.join(names[name] for name in sorted(missing))}"
                )
            self._columns, self._width = columns, max(columns.values()) + 1
            return ()
        try:
            cells = next(csv.reader([line], delimiter=self._delimiter), [])
        except csv.Error as error:
            raise ValueError(str(error)) from None
        if len(cells) < self._width:
            raise ValueError(f"has {len(cells)} columns, not {self._width}")
        at = self._columns
        model = cells[at["model"]].strip() if "model" in at else ""
        tokens_in = _count(cells[at["in"]], "input tokens")
        return [
            Request(_time(cells[at["time"]]), tokens_in, _count(cells[at["out"]], "output tokens"), model)
        ]


def _columns(line: str) -> tuple[str, dict[str, int]]:
    """The delimiter of a header, and where the columns are that matter."""
    delimiter = max(",;\t", key=line.count)
    names = [re.sub(r"[^a-z]", "", name.lower()) for name in line.split(delimiter)]
    found = {}
    for what, known in (("time", _TIME), ("in", _IN), ("out", _OUT), ("model", _MODEL)):
        place = next((names.index(name) for name in known if name in names), None)
        if place is not None:
            found[what] = place
    return delimiter, found


# -- our own journal --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Course:
    """A request of the journal that has not ended. `granted`: when it got its slot."""

    at: float
    model: str
    granted: float | None


class Journal(Lines):
    """`GET /admin/journal`, as JSON lines. Service is from the grant of a slot to the end; retries are no
    arrivals."""

    format = "journal"
    what = "a journal of Modelyard"

    def __init__(self) -> None:
        self._courses: dict[str, _Course] = {}
        self._closed = False
        self._without_start = 0

    @property
    def waiting(self) -> int:
        return len(self._courses)

    @classmethod
    def knows(cls, line: str) -> bool:
        record = _record(line)
        return record is not None and "kind" in record and "t" in record

    def take(self, line: str) -> Iterable[Request]:
        record = _record(line)
        if record is None:
            raise ValueError("is no JSON object")
        kind, name = record.get("kind"), str(record.get("request", ""))
        if kind == "arrived" and not record.get("again") and not self._closed:
            self._courses[name] = self._begun(record)
        elif kind == "grant" and (course := self._courses.get(name)) is not None and course.granted is None:
            course.granted = _time(record.get("t"))
        if kind in ("end", "refuse", "cancel") or record.get("decision") == "refused":
            if (ended := self._courses.pop(name, None)) is not None:
                return [self._ended(ended, record)]
            self._without_start += kind == "end" and not self._closed
        return ()

    def _begun(self, record: Mapping[str, Any]) -> _Course:
        at, model = _time(record.get("t")), record.get("model")
        if not isinstance(model, str) or not model or "request" not in record:
            raise ValueError("an arrival without its request or model")
        return _Course(at, model, at if record.get("decision") == "granted" else None)

    def _ended(self, course: _Course, record: Mapping[str, Any]) -> Request:
        served = course.granted is not None and record["kind"] == "end"
        service = max(0.0, _time(record.get("t")) - (course.granted or 0.0)) if served else None
        tokens = [_count(record.get(name, 0), name) for name in ("tokens_in", "tokens_out")]
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

    format = "access"
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
        return [Request(_time(match["time"]) - (service or 0.0), model=model, service=service)]


class JsonLines(Lines):
    """JSON lines of a proxy or of another server: a time; a model, a path or tokens; seconds or milliseconds
    that it took. A line's time is the end of its request, as in access logs."""

    format = "json"
    what = "JSON lines: time, model or path, duration, tokens; a line's time is its request's end"

    @classmethod
    def knows(cls, line: str) -> bool:
        record = _record(line)
        return record is not None and _first(record, _JSON_TIME) is not None

    def take(self, line: str) -> Iterable[Request]:
        record = _record(line)
        if record is None:
            raise ValueError("is no JSON object")
        if (when := _first(record, _JSON_TIME)) is None:
            raise ValueError("has no time (time, timestamp, ts …)")
        method, target = _target(record)
        model = _first(record, ("model", "model_name")) or _model_in(target)
        tokens = [_count(_first(record, names) or 0, names[0]) for names in (_JSON_IN, _JSON_OUT)]
        if target and not _is_request(method or "POST", target):
            return ()
        if not (target or model or any(tokens)):
            raise ValueError("has no model, path or tokens")
        service = _took(record)
        at = _time(when) - (service or 0.0)
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
    target = _first(record, ("path", "uri", "request_uri", "url"))
    method = _first(record, ("method", "request_method"))
    return str(method or ""), str(target or "")


def _took(record: Mapping[str, Any]) -> float | None:
    for names, unit in ((_SECONDS, 1.0), (_MILLISECONDS, 0.001)):
        value = _first(record, names)
        if value not in (None, "", "-"):
            return _number(str(value).partition(",")[0], names[0]) * unit
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


# -- values -----------------------------------------------------------------------------------------------


def _time(value: object) -> float:
    """Seconds since 1970 (or since whatever a number counts from): ISO 8601, the time of access logs, or a
    number of seconds, milliseconds, microseconds or nanoseconds, told by its size."""
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return _date(text)
    if not isfinite(number):
        raise ValueError("its time is no moment")
    while abs(number) > 1e11:
        number /= 1000.0
    return number


def _date(text: str) -> float:
    try:
        if re.match(r"\d{1,2}/\w{3}/\d{4}:", text):
            return datetime.strptime(text, "%d/%b/%Y:%H:%M:%S %z").timestamp()
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        raise ValueError(f"its time cannot be read: {text[:40]!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _number(value: object, name: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError(f"{name} is no number: {str(value)[:40]!r}") from None
    if not isfinite(number) or number < 0:
        raise ValueError(f"{name} is not possible: {str(value)[:40]!r}")
    return number


def _count(value: object, name: str) -> int:
    return int(_number(value, name))


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


FORMATS: Mapping[str, type[Lines]] = {kind.format: kind for kind in (Csv, Journal, Access, JsonLines)}


def detect(sample: Sequence[str]) -> Lines | None:
    """The kind of a file, from its first lines; a CSV by its first, the others by most of them."""
    lines = [line for line in sample if line.strip()]
    if Csv.knows(lines[0]):
        return Csv()
    counts = {kind: sum(map(kind.knows, lines)) for kind in (Journal, Access, JsonLines)}
    best = max(counts, key=lambda kind: counts[kind])
    return best() if counts[best] * 2 >= len(lines) else None
