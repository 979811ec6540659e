"""Footprints in the registry's database, which all its servers share. Reached as `Registry.footprints`.

What one says is the runtime's own: here it is JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from modelyard.registry import changing
from modelyard.registry.database import Sessions, upsert
from modelyard.registry.records import Json
from modelyard.registry.tables import FootprintRow

MOST = 1_000  # those not seen for longest go
_KEY = ("files", "engine", "parameters", "device")

Stamp = tuple[int, float]


@dataclass(frozen=True, slots=True)
class FootprintRecord:
    """`seen` is when it was observed last, in seconds since the epoch."""

    files: str
    engine: str
    parameters: str
    device: str
    footprint: Json
    seen: float


class FootprintBook:
    """Methods raise RegistryUnavailable."""

    def __init__(self, reading: Sessions, writing: Sessions) -> None:
        self._reading = reading
        self._writing = writing

    async def stamp(self) -> Stamp:
        """What `all` would say: another one tells that somebody has kept something."""
        async with self._reading() as session:
            return await _stamp(session)

    async def all(self) -> tuple[Stamp, Sequence[FootprintRecord]]:
        """All of them, and the stamp of then."""
        async with self._reading() as session:
            stamp, rows = await _stamp(session), await session.scalars(select(FootprintRow))
            return stamp, [
                FootprintRecord(row.files, row.engine, row.parameters, row.device, row.footprint, row.seen)
                for row in rows
            ]

    async def keep(self, records: Iterable[FootprintRecord]) -> tuple[Stamp, Stamp]:
        """Keep each of these, unless what is kept of it was seen later or at the same time. Returns the
        stamps before and after, between which nobody else has kept any."""
        values = sorted((asdict(one) for one in records), key=lambda one: [one[name] for name in _KEY])
        async with self._writing() as session:
            await changing.one_at_a_time(session)
            before = await _stamp(session)
            statement, seen = upsert(session, FootprintRow), FootprintRow.seen
            new = statement.excluded
            statement = statement.on_conflict_do_update(
                index_elements=_KEY,
                set_={"footprint": new.footprint, "seen": new.seen},
                where=new.seen > seen,
            )
            await (await session.connection()).execute(statement, values)
            too_many = select(seen).order_by(seen.desc()).offset(MOST).limit(1).scalar_subquery()
            await session.execute(delete(FootprintRow).where(seen <= too_many))
            return before, await _stamp(session)


async def _stamp(session: AsyncSession) -> Stamp:
    count, seen = (await session.execute(select(func.count(), func.sum(FootprintRow.seen)))).one()
    return count, seen or 0.0
