"""Keys as they are kept, on both kinds of databases."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from hashlib import sha256

import pytest

from modelyard.config import Key, Scope
from modelyard.core.types import Priority
from modelyard.errors import InvalidRequest, KeyNotFound, NameTaken, WouldLockOut
from modelyard.registry import KeyRecord, Registry, checks


def key(name: str, *scopes: Scope, expires: float | None = None) -> KeyRecord:
    digest = sha256(name.encode()).hexdigest()
    found = Key(name, digest, frozenset(scopes or Scope), Priority.HIGH, expires)
    return KeyRecord(found, 1000.5, "ada")


def anything(_keys: Collection[KeyRecord]) -> None:
    pass


async def test_a_key_comes_back_as_it_was_until_it_is_removed(registry: Registry, other: Registry) -> None:
    one, two = key("org/a:b"), key("b", Scope.INFERENCE, expires=2000.25)
    before = await registry.stamp()
    for record in (one, two):
        await registry.keys.add(record, check=anything)
    found = await other.all()
    assert found.keys == {"b": two, "org/a:b": one}
    assert found.stamp == before + 2, "others see that something has changed"
    await other.keys.remove("b", who="bob", at=1001.0, check=anything)
    assert (await registry.all()).keys == {"org/a:b": one}
    with pytest.raises(KeyNotFound):
        await registry.keys.remove("b", who="bob", at=1001.0, check=anything)
    changes = await registry.audit()
    assert [(one.who, one.action, one.model) for one in changes] == [
        ("bob", "remove_key", ""),
        ("ada", "add_key", ""),
        ("ada", "add_key", ""),
    ]
    assert changes[0].before == changes[1].after
    assert changes[1].after == {
        "name": "b",
        "scopes": ["inference"],
        "max_priority": "high",
        "expires": 2000.25,
    }
    assert one.key.digest not in str(changes)


async def test_what_cannot_be_kept_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    await registry.keys.add(key("a"), check=anything)
    with pytest.raises(NameTaken):
        await registry.keys.add(key("a"), check=anything)
    with pytest.raises(InvalidRequest):
        await registry.keys.add(key("a b"), check=anything)
    monkeypatch.setattr(checks, "MOST_ADDITIONS", 1)
    with pytest.raises(InvalidRequest, match="remove some"):
        await registry.keys.add(key("b"), check=anything)
    assert list((await registry.all()).keys) == ["a"]


async def test_two_servers_cannot_each_remove_one_of_the_last_two(
    registry: Registry, other: Registry
) -> None:
    """Whoever comes second is asked about what is left then."""

    def one_is_left(keys: Collection[KeyRecord]) -> None:
        if not keys:
            raise WouldLockOut("none is left")

    for name in ("a", "b"):
        await registry.keys.add(key(name), check=one_is_left)
    removals = (
        server.keys.remove(name, who="ada", at=1.0, check=one_is_left)
        for server, name in ((registry, "a"), (other, "b"))
    )
    outcomes = await asyncio.gather(*removals, return_exceptions=True)
    assert sorted(type(one).__name__ for one in outcomes) == ["NoneType", "WouldLockOut"]
    assert len((await registry.all()).keys) == 1
