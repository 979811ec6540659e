"""Adapters come from entry points; a broken one is named, with its package."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from modelyard.engines.base import Engine
from modelyard.engines.registry import GROUP, from_entry_points, load
from modelyard.errors import ConfigError


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def test_the_bundled_adapters_are_registered() -> None:
    engines = load()
    assert {"fake", "llamacpp"} <= set(engines)
    assert all(isinstance(engine, Engine) and engine.type == name for name, engine in engines.items())


@pytest.mark.parametrize(
    ("points", "path", "said"),
    [
        ([point("x", "no_such_package:Engine")], "engines.x", "ModuleNotFoundError"),
        ([point("x", "modelyard.engines.fake:Nothing")], "engines.x", "AttributeError"),
        ([point("half", "pathlib:Path")], "engines.half", "lacks busy, cause, command"),
        ([point("x", "modelyard.engines.fake:FakeEngine")], "engines.x", "calls itself 'fake', not 'x'"),
        ([point("fake", "modelyard.engines.fake:FakeEngine")] * 2, "engines.fake", "register this engine"),
    ],
)
def test_a_broken_adapter_stops_the_start(points: list[EntryPoint], path: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_entry_points(points)
    assert caught.value.path == path
    assert said in caught.value.message
