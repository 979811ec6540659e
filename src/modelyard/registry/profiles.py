"""Engine profiles: what an entry under `engines:` says, by name. Used as `Registry.profiles`."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from modelyard.config.secrets import HIDDEN
from modelyard.errors import EngineInUse, InvalidRequest, RevisionMismatch, SpecRefused
from modelyard.registry import changing, checks
from modelyard.registry.database import Sessions
from modelyard.registry.records import Json, NewVersion, ProfileRecord
from modelyard.registry.tables import ModelRow, ProfileRow, VersionRow


class Profiles:
    """Methods raise RevisionMismatch when another server has changed the profile meanwhile, and
    RegistryUnavailable; then nothing has changed."""

    def __init__(self, writing: Sessions) -> None:
        self._writing = writing

    async def put(self, record: ProfileRecord) -> None:
        """Keep it in place of the one that has the revision before; as a new one when its own is 1."""
        checks.name_of(record.name)
        who, profile = checks.who_of(record.changed_by), checks.json_of(record.profile, "profile")
        async with self._writing() as session:
            row = await _row(session, record.name, record.revision - 1)
            before = None if row is None else _told(record.name, row.profile)
            if row is None:
                count = select(func.count()).select_from(ProfileRow)
                if (await session.scalars(count)).one() >= checks.MOST_ADDITIONS:
                    raise InvalidRequest(
                        f"there are {checks.MOST_ADDITIONS} engine profiles already; remove some first"
                    )
                row = ProfileRow(name=record.name, created=record.created)
                session.add(row)
            row.revision, row.profile = record.revision, profile
            row.changed, row.changed_by = record.changed, who
            after = _told(record.name, profile)
            await changing.log(session, record.changed, who, "put_engine", before, after)

    async def remove(self, record: ProfileRecord, *, who: str, at: float) -> None:
        """Raises EngineInUse."""
        async with self._writing() as session:
            await _row(session, record.name, record.revision)
            await _refuse_used(session, record.name)
            await session.execute(delete(ProfileRow).where(ProfileRow.name == record.name))
            before = _told(record.name, record.profile)
            await changing.log(session, at, checks.who_of(who), "remove_engine", before, None)


async def load(session: AsyncSession) -> dict[str, ProfileRecord]:
    """All profiles, by name."""
    rows = await session.scalars(select(ProfileRow).order_by(ProfileRow.name))
    return {
        row.name: ProfileRecord(row.name, row.revision, row.profile, row.created, row.changed, row.changed_by)
        for row in rows
    }


async def _row(session: AsyncSession, name: str, revision: int) -> ProfileRow | None:
    """The profile, which nobody else changes until the transaction ends; None where `revision` 0 says that
    there is none. Raises RevisionMismatch."""
    await changing.one_at_a_time(session)
    row = await session.get(ProfileRow, name)
    if (row.revision if row is not None else 0) != revision:
        raise RevisionMismatch(f"the engine profile '{name}' was changed meanwhile; read it again")
    return row


async def check_kept(session: AsyncSession, new: NewVersion) -> None:
    """The profile of a version that is about to be added stays until the transaction ends. Raises SpecRefused
    where it is gone."""
    if not new.profiled:
        return
    name = str(new.spec.get("engine"))
    await changing.one_at_a_time(session)
    if await session.get(ProfileRow, name) is None:
        raise SpecRefused(f"engine: the engine profile '{name}' was removed meanwhile", param="engine")


async def _refuse_used(session: AsyncSession, name: str) -> None:
    """Raises EngineInUse for a profile that a version names, whichever server it came from."""
    query = select(ModelRow.name, VersionRow.number).join(ModelRow, ModelRow.id == VersionRow.model_id)
    query = query.where(VersionRow.spec["engine"].as_string() == name)
    used = (await session.execute(query.order_by(ModelRow.name, VersionRow.number).limit(1))).first()
    if used is not None:
        raise EngineInUse.by(name, *used)


def _told(name: str, profile: Json) -> dict[str, object]:
    """As the audit log has it: variables of the environment may be secrets."""
    environment = profile.get("environment")
    if isinstance(environment, dict):
        profile = {**profile, "environment": dict.fromkeys(environment, HIDDEN)}
    return {"name": name, **profile}
