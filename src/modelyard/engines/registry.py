"""Which engine adapters there are: the entry points of the group `modelyard.engines`.

Called by compose, for each model that comes. A third-party package adds an engine by an entry point whose
name is the engine's `type` and whose value is the adapter's class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from modelyard.engines.base import Engine
from modelyard.errors import ConfigError

GROUP = "modelyard.engines"
_MEMBERS = sorted(name for name in vars(Engine) if not name.startswith("_")) + sorted(
    name for name in Engine.__annotations__ if not name.startswith("_")
)


@cache
def load() -> Mapping[str, Engine]:
    """Every registered adapter by its type, as this process found them first. Raises ConfigError that names a
    broken one and its package."""
    return from_entry_points(entry_points(group=GROUP))


def usual_slots(engine: str, parameters: Mapping[str, object]) -> int:
    """See `Engine.usual_slots`; 1 for an engine that is not here, or is broken: others say that."""
    with suppress(ConfigError, KeyError):
        return load()[engine].usual_slots(parameters)
    return 1


def from_entry_points(points: Iterable[EntryPoint]) -> dict[str, Engine]:
    """The adapters of these entry points, by type. Raises ConfigError."""
    engines: dict[str, Engine] = {}
    owners: dict[str, str] = {}
    for point in points:
        owner = _owner(point)
        if point.name in engines:
            raise ConfigError(
                f"engines.{point.name}",
                f"both {owners[point.name]} and {owner} register this engine; uninstall one of them",
            )
        engines[point.name] = _adapter(point, owner)
        owners[point.name] = owner
    return engines


def _adapter(point: EntryPoint, owner: str) -> Engine:
    path = f"engines.{point.name}"
    try:
        adapter: object = point.load()()
    except Exception as error:
        message = f"{owner} cannot be loaded ({point.value}): {type(error).__name__}: {error}"
        raise ConfigError(path, f"{message}; repair or uninstall it") from error
    missing = [name for name in _MEMBERS if not hasattr(adapter, name)]
    if missing or not isinstance(adapter, Engine):
        raise ConfigError(
            path, f"{owner}: {point.value} is not an engine adapter, it lacks {', '.join(missing)}"
        )
    if adapter.type != point.name:
        raise ConfigError(path, f"{owner}: {point.value} calls itself {adapter.type!r}, not {point.name!r}")
    return adapter


def _owner(point: EntryPoint) -> str:
    return f"the package {point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
