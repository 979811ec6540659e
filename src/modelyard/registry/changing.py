"""One change of one model, inside a transaction. Used by `registry` alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from modelyard.errors import InvalidRequest, ModelNotFound, NameTaken, RevisionMismatch, VersionNotFound
from modelyard.registry import checks, loading
from modelyard.registry.records import ModelRecord
from modelyard.registry.tables import (
    ArtifactRow,
    AuditRow,
    ModelRow,
    NameRow,
    PolicyRow,
    SettingRow,
    TagRow,
    VersionRow,
)

LOGGED = "logged"  # ids in the audit log, in a session's `info`


async def find(session: AsyncSession, name: str, *, lock: bool = False) -> ModelRow:
    """The model with this name or alias; `lock`: until the transaction ends, nobody else changes it.
    Raises ModelNotFound."""
    query = select(ModelRow).join(NameRow).where(NameRow.name == checks.name_of(name))
    if lock:
        query = query.with_for_update(of=ModelRow)
    model = (await session.scalars(query)).one_or_none()
    if model is None:
        raise ModelNotFound(f"there is no model '{name}' in the registry", param="name")
    return model


async def version(session: AsyncSession, model: ModelRow, number: int) -> VersionRow:
    """Raises VersionNotFound."""
    row = await session.get(VersionRow, (model.id, number)) if 0 < number < 2**31 else None
    if row is None:
        raise VersionNotFound(f"the model '{model.name}' has no version {number}", param="version")
    return row


async def record(session: AsyncSession, model: ModelRow) -> ModelRecord:
    return (await loading.models(session, [model]))[0]


async def stamp(session: AsyncSession) -> int:
    """The id of the last change."""
    return (await session.scalars(select(func.max(AuditRow.id)))).one() or 0


async def refuse_taken(session: AsyncSession, names: Sequence[str], own: ModelRow | None) -> None:
    """Raises NameTaken when one of these names leads to another model. Those of a new one (`own` None) begin
    with its own, the others are aliases."""
    query = select(NameRow.name, ModelRow.name).join(ModelRow).where(NameRow.name.in_(names))
    if own is not None:
        query = query.where(NameRow.model_id != own.id)
    for name, model in await session.execute(query.order_by(NameRow.name).limit(1)):
        whose = f"is an alias of '{model}'" if name != model else "is a model of the registry"
        raise _taken(name, whose, "name" if own is None and name == names[0] else "aliases")


def _taken(name: str, whose: str, param: str = "name") -> NameTaken:
    return NameTaken(f"the name '{name}' is taken: it {whose}", param=param)


async def one_at_a_time(session: AsyncSession) -> None:
    """Have all others that want this wait until the transaction ends."""
    await session.execute(select(SettingRow.name).where(SettingRow.name == "digest_key").with_for_update())


async def log(
    session: AsyncSession, at: float, who: str, action: str, before: object, after: object, model: str = ""
) -> None:
    """Write a change down, without secrets."""
    await session.flush()
    await one_at_a_time(session)  # ids come in the order of the commits, so that `stamp` misses none
    row = AuditRow(
        at=at,
        who=who,
        action=action,
        model=model,
        before=checks.without_secrets(before),
        after=checks.without_secrets(after),
    )
    session.add(row)
    await session.flush()
    session.info.setdefault(LOGGED, []).append(row.id)


@dataclass(frozen=True, slots=True)
class Change:
    """A change that `who` makes of a model, whose row is locked, or new."""

    session: AsyncSession
    model: ModelRow
    who: str
    now: float

    def refuse_other(self, match: int | None) -> None:
        """Raises RevisionMismatch."""
        if match is not None and match != self.model.revision:
            raise RevisionMismatch(
                f"the model '{self.model.name}' has revision {self.model.revision}, not {match}: "
                "it was changed meanwhile; read it again"
            )

    async def version_with(self, digest: str) -> VersionRow | None:
        query = select(VersionRow).where(VersionRow.model_id == self.model.id, VersionRow.digest == digest)
        return (await self.session.scalars(query)).one_or_none()

    async def last_version(self) -> int:
        query = select(func.max(VersionRow.number)).where(VersionRow.model_id == self.model.id)
        return (await self.session.scalars(query)).one() or 0

    async def refuse_many(self, table: type[TagRow], most: int) -> None:
        query = select(func.count()).select_from(table).where(table.model_id == self.model.id)
        if (await self.session.scalars(query)).one() >= most:
            raise InvalidRequest(f"the model '{self.model.name}' has {most} tags already", param="tag")

    async def artifacts(self, number: int) -> list[dict[str, Any]]:
        """The columns of a version's files, as `checks.artifacts_of` gives them."""
        return [asdict(file) for file in await loading.artifacts(self.session, self.model.id, number)]

    # -- rows -------------------------------------------------------------------------------------------

    async def add_names(self, names: Sequence[str], *, first: int) -> None:
        """Names of the model, counted from `first`; also the model itself when it is new. Raises NameTaken
        when another change took one meanwhile."""
        try:
            if self.model.id is None:
                self.model.changed = self.now
                self.session.add(self.model)
                await self.session.flush()
            places = {name: first + index for index, name in enumerate(names)}
            for name in sorted(names):  # in one order for all, so that no two changes wait for each other
                self.session.add(NameRow(name=name, model_id=self.model.id, place=places[name]))
            await self.session.flush()
        except IntegrityError:
            raise _taken(self.model.name, "or an alias was taken at the same moment") from None

    async def add_version(self, number: int, columns: Mapping[str, Any]) -> VersionRow:
        row = VersionRow(
            model_id=self.model.id,
            number=number,
            state="registered",
            detail="",
            created=self.now,
            created_by=self.who,
            **columns,
        )
        self.session.add(row)
        await self.session.flush()
        return row

    def add_policy(self, policy: dict[str, Any]) -> None:
        self.session.add(
            PolicyRow(
                model_id=self.model.id,
                number=self.model.policy,
                policy=policy,
                created=self.now,
                created_by=self.who,
            )
        )

    def add_artifacts(self, number: int, files: Iterable[Mapping[str, Any]]) -> None:
        for file in files:
            self.session.add(ArtifactRow(model_id=self.model.id, number=number, **file))

    async def drop(self, table: type[NameRow | ArtifactRow], *which: ColumnElement[bool]) -> None:
        """Delete rows of the model."""
        await self.session.execute(delete(table).where(table.model_id == self.model.id, *which))

    # -- the end ----------------------------------------------------------------------------------------

    async def done(self, action: str, before: object, after: object) -> ModelRecord:
        """Count the revision up, and write it down."""
        self.model.revision += 1
        self.model.changed = self.now
        await self.log(action, before, after)
        return await record(self.session, self.model)

    async def log(self, action: str, before: object, after: object) -> None:
        """Write the change down, without secrets."""
        await log(self.session, self.now, self.who, action, before, after, self.model.name)
