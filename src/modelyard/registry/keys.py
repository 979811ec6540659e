"""Keys of the API: names, rights and digests; never the secrets. Used as `Registry.keys`."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from modelyard.config import Key, Scope
from modelyard.core.types import Priority
from modelyard.errors import InvalidRequest, KeyNotFound, NameTaken
from modelyard.registry import changing, checks
from modelyard.registry.database import Sessions
from modelyard.registry.records import KeyRecord
from modelyard.registry.tables import KeyRow

Check = Callable[[Collection[KeyRecord]], None]
"""Given all keys as they would be after a change, which it may refuse by raising."""


class Keys:
    """Changes are made one after the other, over all servers. They raise RegistryUnavailable, and what
    `check` raises; then nothing has changed."""

    def __init__(self, writing: Sessions) -> None:
        self._writing = writing

    async def add(self, record: KeyRecord, *, check: Check) -> None:
        """Raises NameTaken."""
        key = record.key
        checks.name_of(key.name)
        async with self._writing() as session:
            known = await _alone(session)
            if key.name in known:
                raise NameTaken(f"there is a key '{key.name}' already; remove it first", param="name")
            if len(known) >= checks.MOST_ADDITIONS:
                raise InvalidRequest(f"there are {checks.MOST_ADDITIONS} keys already; remove some first")
            check([*known.values(), record])
            session.add(
                KeyRow(
                    name=key.name,
                    sha256=key.digest,
                    scopes=sorted(key.scopes),
                    max_priority=key.max_priority.name.lower(),
                    expires=key.expires,
                    created=record.created,
                    created_by=checks.who_of(record.created_by),
                )
            )
            await changing.log(session, record.created, record.created_by, "add_key", None, _told(key))

    async def remove(self, name: str, *, who: str, at: float, check: Check) -> None:
        """Raises KeyNotFound."""
        async with self._writing() as session:
            known = await _alone(session)
            gone = known.pop(name, None)
            if gone is None:
                raise KeyNotFound(f"there is no key '{name}' in the registry", param="name")
            check(known.values())
            await session.execute(delete(KeyRow).where(KeyRow.name == name))
            await changing.log(session, at, checks.who_of(who), "remove_key", _told(gone.key), None)


async def load(session: AsyncSession) -> dict[str, KeyRecord]:
    """All keys, by name."""
    rows = await session.scalars(select(KeyRow).order_by(KeyRow.name))
    return {row.name: _record(row) for row in rows}


async def _alone(session: AsyncSession) -> dict[str, KeyRecord]:
    """All keys, which nobody else changes until the transaction ends."""
    await changing.one_at_a_time(session)
    return await load(session)


def _record(row: KeyRow) -> KeyRecord:
    scopes = frozenset(Scope(scope) for scope in row.scopes)
    key = Key(row.name, row.sha256, scopes, Priority[row.max_priority.upper()], row.expires)
    return KeyRecord(key, row.created, row.created_by)


def _told(key: Key) -> dict[str, object]:
    """As the audit log has it."""
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "max_priority": key.max_priority.name.lower(),
        "expires": key.expires,
    }
