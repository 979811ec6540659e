"""Values as people may see them: plain JSON, without what looks like a secret.

Used by `difference` and `versions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from enum import Enum
from math import inf
from pathlib import Path

from pydantic import SecretStr

from modelyard.core.types import RateLimit

HIDDEN = "…"  # in place of a value that may be a secret
SHORTEST = 6  # characters of a secret that is looked for in a text
SECRET = re.compile("key|token|secret|passw|credential|auth|header|hft", re.IGNORECASE)  # in a name


_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(://[^?#\s]*)\?[^#\s]*")


def shown(address: str) -> str:
    """An address as people and logs may see it: without a user, a password, or what a query holds."""
    return _QUERY.sub(r"\1?…", _USER.sub("****@", address))


def without(text: str, parameters: Mapping[str, object]) -> str:
    """A text that a server wrote, which may repeat a secret that it was sent: without those among these."""
    for name, value in parameters.items():
        if SECRET.search(name) and isinstance(value, str) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text


def plain(value: object) -> object:
    """A value as JSON has it; without an end is `forever`, as it is written."""
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, RateLimit):
        return plain(asdict(value))
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return _items(value)
    if isinstance(value, Mapping):
        secret = (name for name, item in value.items() if isinstance(item, str) and SECRET.search(name))
        return {name: plain(item) for name, item in value.items()} | dict.fromkeys(secret, HIDDEN)
    return "forever" if value == inf else value


def _items(values: Iterable[object]) -> list[object]:
    """A list, which may be the arguments of a program: `--api-key x` and `--api-key=x` keep theirs."""
    found: list[object] = []
    flagged = False
    for value in values:
        flag, given, _ = value.partition("=") if isinstance(value, str) else ("", "", "")
        secret = flag.startswith("-") and SECRET.search(flag) is not None
        if secret and given:
            found.append(f"{flag}={HIDDEN}")
        else:
            found.append(HIDDEN if flagged else plain(value))
        flagged = secret and not given
    return found
