"""Lines of a trace → requests: what the kinds of files have in common, and CSVs. The others are in
`sim/logs.py`; `sim/inputs.py` drives them.

`take` raises ValueError for a line that cannot be read, with what is wrong in it. What a line says without
being a request (another path of a server, a record about an instance) is passed over.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from typing import Any, ClassVar

from modelyard.sim.choices import Format


@dataclass(slots=True)
class Request:
    """One arrival, in seconds. `model` is empty where the trace names none; `service` is how long it held its
    slot, in seconds, None where that was not recorded."""

    at: float
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""
    service: float | None = None


@dataclass(slots=True)
class RecordedServer:
    """What a journal tells of its server: bytes of devices; of models that were started, the slots, the bytes
    on each device as placed last, and the seconds of their last load."""

    devices: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    models: dict[str, dict[str, int]] = field(default_factory=dict)
    loads: dict[str, float] = field(default_factory=dict)


class Lines(ABC):
    """A kind of trace. `waiting`: requests whose end has not been read yet. `server`: what it tells of its
    server. `clock` reads its times."""

    format: ClassVar[Format]
    what: ClassVar[str]
    server: RecordedServer | None = None

    def __init__(self) -> None:
        self.clock = Clock()

    @property
    def waiting(self) -> int:
        return 0

    @classmethod
    @abstractmethod
    def knows(cls, line: str) -> bool:
        """Whether a line is one of this kind."""

    @abstractmethod
    def take(self, line: str) -> Iterable[Request]:
        """The requests that are known whole by this line."""

    def close(self) -> None:  # noqa: B027 - only what waits for an end has something to close
        """No request that begins from now on is wanted."""

    def end(self) -> Iterable[Request]:
        """What is left at the end of the file."""
        return ()

    def notes(self) -> list[str]:
        """What people have to be told of how it was read."""
        return [f"times are numbers, read as {self.clock.unit}"] if self.clock.largest is not None else []


class Clock:
    """The times of one file: ISO 8601, the time of access logs, or numbers, all in one unit. `largest` is the
    largest number that was read."""

    def __init__(self, largest: float | None = None) -> None:
        """`largest`: of the file's numbers, as far as known; its size tells the unit."""
        place = 0
        while largest is not None and place < len(UNITS) - 1 and largest >= UNCERTAIN * 1000**place:
            place += 1
        self.unit = UNITS[place]
        self.largest: float | None = None
        self._scale = 1000.0**place

    def seconds(self, value: object) -> float:
        """Since 1970, or since whatever a number counts from. Raises ValueError."""
        text = str(value).strip()
        try:
            number = float(text)
        except ValueError:
            return _date(text)
        if not abs(number) < UNCERTAIN * 1000.0 ** (len(UNITS) - 1):
            raise ValueError("its time is no moment")
        self.largest = max(abs(number), self.largest or 0.0)
        if abs(number) >= UNCERTAIN * self._scale:
            raise ValueError(f"its time is too large for one in {self.unit}, as others are: {text[:40]}")
        return number / self._scale


UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
UNCERTAIN = 1e11  # seconds: a moment in the year 5138, so a number from there on counts less than seconds


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

    format = Format.CSV
    what = "a CSV of arrivals"

    def __init__(self) -> None:
        super().__init__()
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
        tokens = [count_of(cells[at[which]], f"{which}put tokens") for which in ("in", "out")]
        return [Request(self.clock.seconds(cells[at["time"]]), tokens[0], tokens[1], model)]


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


# -- values -----------------------------------------------------------------------------------------------


def _date(text: str) -> float:
    try:
        if re.match(r"\d{1,2}/\w{3}/\d{4}:", text):
            return datetime.strptime(text, "%d/%b/%Y:%H:%M:%S %z").timestamp()
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        raise ValueError(f"its time cannot be read: {text[:40]!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def number_of(value: object, name: str) -> float:
    """A number from 0 up. Raises ValueError."""
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError(f"{name} is no number: {str(value)[:40]!r}") from None
    if not isfinite(number) or number < 0:
        raise ValueError(f"{name} is not possible: {str(value)[:40]!r}")
    return number


def count_of(value: object, name: str) -> int:
    """A whole number from 0 up; what is behind the point is dropped. Raises ValueError."""
    return int(number_of(value, name))


def record_of(line: str) -> dict[str, Any] | None:
    """The JSON object of a line, None for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def first_of(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of these fields that is there."""
    return next((record[name] for name in names if record.get(name) is not None), None)
