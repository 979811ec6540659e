"""`record`: the decorator of what is made anew for every request and never changed.

Used for the events and actions on the path of a request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A dataclass with slots that type checkers hold to be frozen.

    At run time nothing checks it: a dataclass that does sets each field through `object.__setattr__`, which
    makes it slower to create.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
