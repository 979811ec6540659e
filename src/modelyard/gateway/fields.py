"""A JSON object of a request, read field by field, so that none is overlooked: what nobody took is refused.

Used by the APIs whose requests are translated. Every refusal is InvalidRequest with the path of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from modelyard.errors import InvalidRequest

T = TypeVar("T")


def refuse(path: str, message: str) -> NoReturn:
    raise InvalidRequest(f"`{path}` {message}.", param=path)


class Fields:
    """An object at `path` (empty: the body). A field that is null counts as absent."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            refuse(path or "body", "has to be an object")
        self._left = {name: field for name, field in value.items() if field is not None}
        self._path = path

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> object:
        """The field as it is; None when it is absent."""
        return self._left.pop(name, None)

    def ignore(self, *names: str) -> None:
        """Hints that change nothing in the answer."""
        for name in names:
            self._left.pop(name, None)

    def ignore_empty(self) -> None:
        """Fields that ask for nothing: false, or an empty text, list or object. Go's clients send all."""
        self._left = {name: value for name, value in self._left.items() if value not in (False, "", [], {})}

    def text(self, name: str) -> str | None:
        return self._typed(name, lambda value: value if isinstance(value, str) else None, "a string")

    def needed(self, name: str) -> str:
        """A string that has to be there."""
        value = self.text(name)
        if value is None:
            refuse(self.path(name), "is missing")
        return value

    def flag(self, name: str) -> bool | None:
        return self._typed(name, lambda value: value if isinstance(value, bool) else None, "true or false")

    def whole(self, name: str, least: int | None = None) -> int | None:
        def read(value: object) -> int | None:
            right = (
                isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
            )
            return value if right else None  # type: ignore[return-value]

        return self._typed(name, read, "a whole number" + ("" if least is None else f" from {least}"))

    def number(self, name: str) -> float | None:
        def read(value: object) -> float | None:
            return value if isinstance(value, int | float) and not isinstance(value, bool) else None

        return self._typed(name, read, "a number")

    def texts(self, name: str) -> list[str] | None:
        """A list of strings, or one string."""

        def read(value: object) -> list[str] | None:
            if isinstance(value, str):
                return [value]
            right = isinstance(value, list) and all(isinstance(item, str) for item in value)
            return value if right else None  # type: ignore[return-value]

        return self._typed(name, read, "a list of strings")

    def mapping(self, name: str) -> dict[str, object] | None:
        return self._typed(name, lambda value: value if isinstance(value, dict) else None, "an object")

    def inner(self, name: str) -> Fields | None:
        value = self.take(name)
        return None if value is None else Fields(value, self.path(name))

    def objects(self, name: str) -> Iterator[Fields]:
        """Each object of a list; nothing when it is absent."""
        value = self.take(name)
        if value is not None:
            yield from self.objects_of(name, value)

    def objects_of(self, name: str, value: object) -> Iterator[Fields]:
        """The same of a value that was taken under this name."""
        if not isinstance(value, list):
            refuse(self.path(name), "has to be a list of objects")
        for number, item in enumerate(value):
            yield Fields(item, f"{self.path(name)}[{number}]")

    def close(self, what: str = "is not supported here") -> None:
        """Refuse what was not taken."""
        for name in self._left:
            refuse(self.path(name), what)

    def _typed(self, name: str, read: Callable[[object], T | None], kind: str) -> T | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        found = read(value)
        if found is None:
            refuse(self.path(name), f"has to be {kind}")
        return found
