"""The parameters of an engine as a table: which there are, what values they take, which flag says them.

Used by adapters. A parameter's name may have dots, which go into mappings: `draft.max` is `draft: {max: 5}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

Check = Callable[[object], str]  # what the value must be, or empty


@dataclass(frozen=True)
class Option:
    """One parameter. `flag` empty: the adapter says it by hand."""

    name: str
    check: Check
    flag: str = ""

    def argv(self, value: object) -> list[str]:
        """How a program is told by its flag."""
        if not self.flag:
            return []
        return [self.flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]


class Table:
    """The parameters of one engine."""

    def __init__(self, engine: str, options: Sequence[Option]) -> None:
        self._engine = engine
        self._by_name = {option.name: option for option in options}
        self._groups = {option.name.partition(".")[0] for option in options if "." in option.name}

    def walk(self, parameters: Mapping[str, object]) -> Iterator[tuple[str, object]]:
        """The parameters by dotted name."""
        for name, value in parameters.items():
            if name in self._groups and isinstance(value, Mapping):
                yield from ((f"{name}.{inner}", item) for inner, item in value.items())
            else:
                yield name, value

    def problems(self, parameters: Mapping[str, object]) -> list[tuple[str, str]]:
        """What is wrong with the parameters, each with its path below the model."""
        found: list[tuple[str, str]] = []
        for name, value in self.walk(parameters):
            option = self._by_name.get(name)
            if option is not None:
                message = option.check(value)
            elif name in self._groups:
                own = [known for known in self._by_name if known.startswith(name + ".")]
                message = f"must be a mapping with some of {', '.join(one.partition('.')[2] for one in own)}"
            else:
                there = ", ".join(sorted(self._by_name))
                message = f"is not a parameter of {self._engine}; there are {there}"
            if message:
                found.append((f"parameters.{name}", message))
        return found


def whole_of(options: Mapping[str, object], name: str, default: int) -> int:
    """A whole number among options that were checked, or are yet to be."""
    value = options.get(name)
    return value if isinstance(value, int) else default


def whole(least: int) -> Check:
    """A whole number, at least this."""

    def check(value: object) -> str:
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return "" if fine else f"must be a whole number, {least} or more"

    return check


def one_of(*names: str) -> Check:
    """One of these words. (YAML reads a bare `on` as true, so a truth value stands for on and off.)"""

    def check(value: object) -> str:
        fine = value in names or (isinstance(value, bool) and "on" in names)
        return "" if fine else f"must be one of {', '.join(names)}"

    return check


def some_of(*names: str) -> Check:
    """A list of some of these words."""

    def check(value: object) -> str:
        fine = isinstance(value, list | tuple) and value and all(item in names for item in value)
        return "" if fine else f"must be a list of some of {', '.join(names)}"

    return check


def url(example: str, more: str = "") -> Check:
    """The address of a server, as this one; `more` is said of what it must be without. It is not repeated, as
    it may hold a password."""
    wrong = f"must be an address, e.g. {example}"

    def check(value: object) -> str:
        try:
            parts = urlsplit(value if isinstance(value, str) else "")
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            return wrong
        if not fine or not re.fullmatch(r"[!-~]*", parts.path) or re.search(r"[\s\0]", parts.netloc):
            return wrong
        if "@" in parts.netloc or parts.query or parts.fragment:
            return f"must be without a user, a password or a query{more}"
        return ""

    return check


def truth(value: object) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def text(value: object) -> str:
    return "" if isinstance(value, str) and value else "must be a text"


def word(value: object) -> str:
    """A text that a program can be told as a word of its own: it would take `-x` for a flag."""
    fine = isinstance(value, str) and value and not value.startswith("-")
    return "" if fine else "must be a text that does not begin with -"


def path(value: object) -> str:
    """The path of a file, as a configuration's `./…` has become one."""
    fine = isinstance(value, str) and os.path.isabs(value)
    return "" if fine else "must be an absolute path, or in a configuration file one that begins with ./"


def visible(value: object) -> str:
    fine = isinstance(value, str) and re.fullmatch(r"[!-~]+", value)
    return "" if fine else "must be visible ASCII characters without spaces, e.g. ${MY_KEY}"


def fraction(value: object) -> str:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return "" if fine else "must be a number from 0 to 1"


def texts(value: object) -> str:
    fine = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    return "" if fine else "must be a list of texts"
