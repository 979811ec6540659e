"""What was used, hour by hour, in the registry's database. Reached as `Registry.usage`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from math import ceil
from typing import Any

from sqlalchemy import delete, func, select

from modelyard.registry import checks
from modelyard.registry.database import Sessions, upsert
from modelyard.registry.records import LARGEST_PAGE
from modelyard.registry.tables import PairRow, SettingRow, UsageRow
from modelyard.telemetry.usage import HOUR, Asked, Place, Sums

KEPT = 366 * 24  # hours
DEMAND = 10 * 24  # hours that are looked at for demand: what is older weighs under 0.1 %
HALF_LIFE = 24.0  # hours after which a request counts half
BATCH_KEPT = 86_400.0  # seconds for which a batch may be tried again
_BATCH = "usage/"
_COUNTS = {field.name: type(getattr(Sums(), field.name)) for field in fields(Sums)}


class By(StrEnum):
    """What rows are told apart by."""

    HOUR = "hour"
    KEY = "key"
    MODEL = "model"
    VERSION = "version"


_PLACE = [one.value for one in By]
_PAIR = ("hour", "source", "target", "model")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows: those of hours that are, in part or whole, from `since` until `until` (seconds since the
    epoch; None: without an end), of one model, of one key. What differs in nothing of `by` is added up."""

    by: Sequence[By] = ()
    since: float | None = None
    until: float | None = None
    model: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """`of` has a value for each thing that was asked `by`; an hour is its first second since the epoch."""

    of: Mapping[By, str | int]
    sums: Sums


class UsageBook:
    """Methods raise RegistryUnavailable. Rows are kept for a year."""

    def __init__(self, reading: Sessions, writing: Sessions, clock: Callable[[], float]) -> None:
        self._reading = reading
        self._writing = writing
        self._clock = clock

    async def add(self, rows: Mapping[Place, Sums], *, server: str, batch: str) -> None:
        """Add these to what is kept. The same batch of a server counts once, however often it is given: after
        an error it may have been kept, or not. Batches of one server come one after the other."""
        added = [  # in one order, so that no two servers wait for each other
            dict(zip(_PLACE, place, strict=True)) | asdict(sums) for place, sums in sorted(rows.items())
        ]
        await self._add(UsageRow, _PLACE, list(_COUNTS), added, _BATCH + server, batch)

    async def add_pairs(self, rows: Mapping[tuple[int, Asked], int], *, server: str, batch: str) -> None:
        """Likewise, with batches of their own."""
        added = [
            dict(zip(_PAIR, (hour, *asked), strict=True)) | {"requests": requests}
            for (hour, asked), requests in sorted(rows.items())
        ]
        await self._add(PairRow, _PAIR, ["requests"], added, f"{_BATCH}pairs/{server}", batch)

    async def _add(
        self,
        table: type[UsageRow | PairRow],
        place: Sequence[str],
        counts: Sequence[str],
        added: Sequence[Mapping[str, Any]],
        setting: str,
        batch: str,
    ) -> None:
        async with self._writing() as session:
            known = await session.get(SettingRow, setting)
            if known is not None and known.value == batch:
                return
            statement = upsert(session, table)
            more = {name: getattr(table, name) + statement.excluded[name] for name in counts}
            statement = statement.on_conflict_do_update(index_elements=place, set_=more)
            await (await session.connection()).execute(statement, added)
            await session.merge(SettingRow(name=setting, value=batch))

    async def sums(self, wanted: Wanted, *, offset: int = 0, limit: int = LARGEST_PAGE) -> list[UsageRecord]:
        """In the order of what they are told apart by. Without that there is one, of everything. Raises
        InvalidRequest for a name that can be none."""
        columns = [getattr(UsageRow, name) for name in wanted.by]
        query = select(*columns, *(func.sum(getattr(UsageRow, name)) for name in _COUNTS))
        if wanted.since is not None:
            query = query.where(UsageRow.hour >= _hour(wanted.since))
        if wanted.until is not None:
            query = query.where(UsageRow.hour < ceil(wanted.until / HOUR))
        if wanted.model is not None:
            query = query.where(UsageRow.model == checks.text_of(wanted.model, "model"))
        if wanted.key is not None:
            query = query.where(UsageRow.key == checks.text_of(wanted.key, "key"))
        query = query.group_by(*columns).order_by(*columns).offset(offset).limit(min(limit, LARGEST_PAGE))
        async with self._reading() as session:
            return [_record(wanted.by, row) for row in await session.execute(query)]

    async def demand(self) -> Mapping[str, float]:
        """How often each model was asked for lately, by all servers; what is a day old counts half."""
        return {model: asked for (model,), asked in (await self._demand(UsageRow, [UsageRow.model])).items()}

    async def pairs(self) -> Mapping[Asked, float]:
        """Likewise, how often each translation was asked for."""
        return await self._demand(PairRow, [PairRow.source, PairRow.target, PairRow.model])

    async def _demand(self, table: type[UsageRow | PairRow], columns: Sequence[Any]) -> dict[Any, float]:
        hour = _hour(self._clock())
        query = select(table.hour, func.sum(table.requests), *columns)
        query = query.where(table.hour > hour - DEMAND).group_by(*columns, table.hour)
        found: dict[Any, float] = defaultdict(float)
        async with self._reading() as session:
            for then, requests, *what in await session.execute(query):
                found[tuple(what)] += float(requests) * 0.5 ** (max(0, hour - then) / HALF_LIFE)
        return found

    async def forget(self) -> None:
        """Remove what is older than a year, pairs on which no demand rests any more, and the marks of batches
        that nobody tries again."""
        moment = self._clock()
        async with self._writing() as session:
            await session.execute(delete(UsageRow).where(UsageRow.hour < _hour(moment) - KEPT))
            await session.execute(delete(PairRow).where(PairRow.hour <= _hour(moment) - DEMAND))
            old = SettingRow.value < batch_name(moment - BATCH_KEPT)
            await session.execute(delete(SettingRow).where(SettingRow.name.startswith(_BATCH), old))


def batch_name(moment: float) -> str:
    """The name of a batch that is made at this moment; names grow with it."""
    return f"{moment:020.6f}"


def _hour(moment: float) -> int:
    return int(moment // HOUR)


def _record(by: Sequence[By], row: Sequence[Any]) -> UsageRecord:
    of = dict(zip(by, row, strict=False))
    if By.HOUR in of:
        of[By.HOUR] *= HOUR
    counts = zip(_COUNTS.values(), row[len(by) :], strict=True)  # no rows: no sums; PostgreSQL's are decimals
    return UsageRecord(of, Sums(*(kind(value or 0) for kind, value in counts)))
