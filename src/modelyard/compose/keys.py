"""Keys of the registry: made and removed while the server runs.

Built by `yard`. They are in force on this server at once, on others when those look.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from secrets import token_urlsafe

from modelyard.compose.additions import expect_keys, remember_keys
from modelyard.compose.live import Live
from modelyard.compose.registered import Held
from modelyard.config import Key, Scope
from modelyard.config.listen import is_open
from modelyard.core.types import Priority
from modelyard.errors import KeyNotFound, NameTaken, OwnedByFile, WouldLockOut
from modelyard.registry import KeyRecord, Registry

PREFIX = "my-"
SECRET = 32  # random bytes


class RegistryKeys:
    """See `gateway.keys_routes.Keys`."""

    def __init__(self, registry: Registry, held: Held, live: Live) -> None:
        self._registry = registry
        self._held = held
        self._live = live

    def all(self) -> Sequence[tuple[Key, KeyRecord | None, str]]:
        """See Keys.all."""
        held = self._held
        return [
            *((key, None, "") for key in self._of_file()),
            *((one.key, one, "") for one in self._live.additions.keys.values()),
            *((one.key, one, held.unusable[f"keys.{name}"]) for name, one in held.left_out.keys.items()),
        ]

    async def add(
        self, name: str, scopes: Iterable[Scope], priority: Priority, lasts: float | None, *, who: str
    ) -> tuple[KeyRecord, str]:
        """See Keys.add."""
        secret, now = PREFIX + token_urlsafe(SECRET), time.time()
        expires = None if lasts is None else now + lasts
        key = Key(name, sha256(secret.encode()).hexdigest(), frozenset(scopes), priority, expires)
        record = KeyRecord(key, now, who)
        async with self._held.changing:
            if self._is_of_file(name):
                raise NameTaken(
                    f"{name} is a key of the configuration's file; use another name", param="name"
                )
            additions = self._live.additions
            await self._live.register(
                None,
                commit=lambda: self._registry.keys.add(record, check=self._check_added),
                additions=replace(additions, keys={**additions.keys, name: record}),
            )
        return record, secret

    async def remove(self, name: str, *, who: str) -> None:
        """See Keys.remove."""
        async with self._held.changing:
            additions, path = self._live.additions, f"keys.{name}"
            if path not in self._held.unusable:
                if self._is_of_file(name):
                    raise OwnedByFile.at(name)
                if name not in additions.keys:
                    raise KeyNotFound(f"There is no key {name!r}.", param="name")
            await self._live.register(
                None,
                commit=lambda: self._registry.keys.remove(name, who=who, at=time.time(), check=self._check),
                additions=additions.without({path}),
            )
            self._held.mended(path)
            known = self._live.additions.keys or self._held.left_out.keys
            remember_keys(self._live.config, bool(known))

    def _is_of_file(self, name: str) -> bool:
        return any(key.name == name for key in self._of_file())

    def _of_file(self) -> tuple[Key, ...]:
        return self._live.base.keys

    def _check_added(self, registered: Collection[KeyRecord]) -> None:
        """Raises WouldLockOut, RegistryUnavailable. The last step before the commit."""
        self._check(registered)
        expect_keys(self._live.config)

    def _check(self, registered: Collection[KeyRecord]) -> None:
        """Raises WouldLockOut where nobody could change anything with these, and those of the file."""
        keys = [*self._of_file(), *(record.key for record in registered)]
        if any(Scope.ADMIN in key.scopes and key.expires is None for key in keys):
            return
        if keys:
            raise WouldLockOut(
                "Where there are keys, one has to have the scope admin and not to expire, or nobody could "
                "change anything: add such a one first, and remove it last.",
                param="scopes",
            )
        if not is_open(self._live.config.server):
            raise WouldLockOut("This is the only key, and beyond loopback nobody is served without one.")
