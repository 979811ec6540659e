"""Sizes, durations, counts and flags as people write them, and their pydantic types.

Used by `schema`. Sizes become bytes, durations seconds. A string is accepted wherever a number is meant,
because `${NAME}` always gives one; a boolean is never a number. Messages do not repeat the value.
"""

from __future__ import annotations

import re
from math import inf, isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from modelyard.core.units import parse_size

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_TIMES = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST = 365 * 86400.0
HIGHEST = 10**9


def parse_duration(value: object) -> float:
    """Seconds from `5s`, `10m`, `1h`, `250ms`, or a number; `forever` is infinity. Raises ValueError."""
    if value == "forever":
        return inf
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _TIME.fullmatch(value.strip())):
        seconds = float(match[1]) * _TIMES[match[2] or "s"]
    else:
        raise ValueError("is not a duration; write 250ms, 5s, 10m, 1h or a number of seconds")
    if not isfinite(seconds) or not 0 <= seconds <= LONGEST:
        raise ValueError("is not a duration between 0 and 365d")
    return seconds


def _positive_size(value: object) -> int:
    if (size := parse_size(value)) == 0:
        raise ValueError("must be more than 0 bytes")
    return size


def _bounded_duration(value: object) -> float:
    if (seconds := parse_duration(value)) == inf:
        raise ValueError("must have a bound; only keep_alive can be 'forever'")
    return seconds


def _positive_duration(value: object) -> float:
    if (seconds := _bounded_duration(value)) == 0:
        raise ValueError("must be more than 0 seconds")
    return seconds


def parse_price(value: object) -> float:
    """A number from 0 to a billion, of no unit. Raises ValueError."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,12}(\.\d{1,12})?", value.strip()):
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= HIGHEST:
        raise ValueError("is not a price: a number from 0 to 1,000,000,000, without a currency")
    return float(value)


def _parse_count(low: int, high: int) -> Any:
    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("is not a whole number")
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return parse


def parse_flag(value: object) -> bool:
    """A boolean, or `true`/`false` as text. Raises ValueError."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    raise ValueError("is not true or false")


def parse_digest(value: object) -> str:
    """A sha256 in lower-case hex, with or without `sha256:` before it. Raises ValueError."""
    text = value.removeprefix("sha256:").lower() if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("is not a sha256 in hex (64 digits)")
    return text


_FROM_ENVIRONMENT = {"type": "string", "pattern": r"^\$\{"}
_SIZE_SCHEMA = {
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}],
    "examples": ["24GB", "24GiB", 1048576],
}
_TIME_SCHEMA = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}],
    "examples": ["250ms", "5s", "10m", "1h", 30],
}

Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
PositiveSize = Annotated[int, BeforeValidator(_positive_size), WithJsonSchema(_SIZE_SCHEMA)]
Duration = Annotated[float, BeforeValidator(_bounded_duration), WithJsonSchema(_TIME_SCHEMA)]
PositiveDuration = Annotated[float, BeforeValidator(_positive_duration), WithJsonSchema(_TIME_SCHEMA)]
KeepAlive = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema({**_TIME_SCHEMA, "examples": ["10m", 0, "forever"]}),
]
Flag = Annotated[
    bool, BeforeValidator(parse_flag), WithJsonSchema({"anyOf": [{"type": "boolean"}, _FROM_ENVIRONMENT]})
]

Amount = Annotated[
    float,
    BeforeValidator(parse_price),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": HIGHEST}, _FROM_ENVIRONMENT]}),
]


def _count_schema(low: int, high: int) -> WithJsonSchema:
    whole = {"type": "integer", "minimum": low, "maximum": high}
    return WithJsonSchema({"anyOf": [whole, _FROM_ENVIRONMENT]})


Port = Annotated[int, BeforeValidator(_parse_count(0, 65535)), _count_schema(0, 65535)]
Count = Annotated[int, BeforeValidator(_parse_count(0, 10**6)), _count_schema(0, 10**6)]
Few = Annotated[int, BeforeValidator(_parse_count(1, 16)), _count_schema(1, 16)]
PositiveCount = Annotated[int, BeforeValidator(_parse_count(1, 10**6)), _count_schema(1, 10**6)]
