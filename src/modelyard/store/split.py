"""Models in several files: what the name of the first one says of the others. `model-00001-of-00003.gguf`

llama.cpp is told the first, and finds the others beside it by their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MOST = 1000
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf(?P<rest>[?#].*)?", re.DOTALL)


def parts_of(source: str) -> tuple[str, ...]:
    """The sources of all parts of a model, in their order, by that of the first; any other source is alone.
    What follows a `#` is said of the first."""
    part = _PART.fullmatch(source)
    count = int(part["count"]) if part is not None else 1
    if part is None or int(part["number"]) != 1 or not 1 < count <= MOST:
        return (source,)
    rest = (part["rest"] or "").partition("#")[0]
    others = (f"{part['stem']}{suffix(number, count)}{rest}" for number in range(2, count + 1))
    return (source, *others)


def suffix(number: int, count: int) -> str:
    """What the name of a part ends with; the first is 1."""
    return f"-{number:05}-of-{count:05}.gguf"


def problem(source: str, of_each: Callable[[str], str | None]) -> str | None:
    """What is wrong with a source that is to be a whole model: its name, or what `of_each` says of a part."""
    part = _PART.fullmatch(source)
    if part is not None and int(part["count"]) > MOST:
        return f"is a part of {int(part['count'])}; a model in more than {MOST} files is not taken"
    if part is not None and int(part["number"]) != 1:
        return (
            f"is part {int(part['number'])} of {int(part['count'])}; name the first, which ends with "
            f"{suffix(1, int(part['count']))}: the others are fetched with it"
        )
    return next((found for one in parts_of(source) if (found := of_each(one))), None)
