"""What is wrong with a configuration, and where: collected first, raised at once.

Used by every module of this package. A message never repeats the value it complains about: it may have come
from the environment and be a secret. The path, file and line find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

from modelyard.errors import ConfigError

LISTED = 50

Refuse: TypeAlias = Callable[[str, str], None]
"""Takes the path of what is wrong, and a message."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong value. `where` is `file:line`, empty when there is no file."""

    path: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return f"{text} ({self.where})" if self.where else text


class ConfigErrors(ConfigError):
    """Every problem of one configuration, one line each; `path` is that of the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        first: dict[tuple[str, str], Problem] = {}
        for problem in problems:
            # What is said later of the same value follows from the first, e.g. that it is empty.
            first.setdefault((problem.path, problem.where), problem)
        self.problems = tuple(first.values())
        lines = [str(problem) for problem in self.problems[:LISTED]]
        if len(self.problems) > LISTED:
            lines.append(f"… and {len(self.problems) - LISTED} more")
        super().__init__("", "\n".join(lines))
        self.path = self.problems[0].path if self.problems else ""


def near_miss(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known word, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def is_below(path: str, above: str) -> bool:
    """Whether a path is `above` or lies below it."""
    return path == above or path.startswith((above + ".", above + "["))


def join(path: str, part: str | int) -> str:
    """The path one step further: `models` + `qwen`, `keys` + 0 → `keys[0]`."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    return f"{path}.{part}" if path else part
