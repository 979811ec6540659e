"""Rows → records, in a number of queries that does not depend on how many models there are. Used by
`registry`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.ext.asyncio import AsyncSession

from modelyard.registry.records import (
    Artifact,
    AuditRecord,
    Capabilities,
    FileFacts,
    ModelRecord,
    PolicyRecord,
    VersionRecord,
    VersionState,
)
from modelyard.registry.tables import (
    ArtifactRow,
    AuditRow,
    ModelRow,
    NameRow,
    PolicyRow,
    TagRow,
    VersionRow,
)

_CHUNK = 200  # rows


async def everything(
    session: AsyncSession,
) -> tuple[list[ModelRecord], dict[str, tuple[VersionRecord, ...]]]:
    """All models by name, and the versions of each. It lets others have the loop meanwhile."""
    rows = (await session.scalars(select(ModelRow).order_by(ModelRow.name))).all()
    names = {row.id: row.name for row in rows}
    query = select(VersionRow).order_by(VersionRow.model_id, VersionRow.number)
    versions: dict[str, list[VersionRecord]] = defaultdict(list)
    async for row in await session.stream_scalars(query, execution_options={"yield_per": _CHUNK}):
        versions[names[row.model_id]].append(version(names[row.model_id], row))
    currents = {row.id: versions[row.name][row.current - 1] for row in rows}
    found = await _records(session, rows, currents, [])
    return found, {name: tuple(each) for name, each in versions.items()}


async def models(session: AsyncSession, rows: Sequence[ModelRow]) -> list[ModelRecord]:
    """The records of these models, in their order."""
    if not rows:
        return []
    these = ModelRow.id.in_([row.id for row in rows])
    query = select(ModelRow.name, VersionRow).join(
        VersionRow, and_(VersionRow.model_id == ModelRow.id, VersionRow.number == ModelRow.current)
    )
    currents = {row.model_id: version(name, row) for name, row in await session.execute(query.where(these))}
    return await _records(session, rows, currents, [these])


async def _records(
    session: AsyncSession,
    rows: Sequence[ModelRow],
    currents: Mapping[int, VersionRecord],
    wanted: list[ColumnElement[bool]],
) -> list[ModelRecord]:
    """The records of models whose current versions are known; `wanted` chooses just these of all models."""
    held = select(PolicyRow.model_id, PolicyRow.policy).join(
        ModelRow, and_(PolicyRow.model_id == ModelRow.id, PolicyRow.number == ModelRow.policy)
    )
    policies = {row.model_id: row.policy for row in await session.execute(held.where(*wanted))}
    named = select(NameRow.model_id, NameRow.place, NameRow.name).join(ModelRow)
    aliases: dict[int, dict[int, str]] = defaultdict(dict)
    for model, place, name in await session.execute(named.where(NameRow.place > 0, *wanted)):
        aliases[model][place] = name
    tagged = select(TagRow.model_id, TagRow.tag, TagRow.number).join(ModelRow, TagRow.model_id == ModelRow.id)
    tags: dict[int, dict[str, int]] = defaultdict(dict)
    for model, tag, number in await session.execute(tagged.where(*wanted)):
        tags[model][tag] = number
    return [
        ModelRecord(
            name=row.name,
            revision=row.revision,
            owner=row.owner,
            description=row.description,
            current=currents[row.id],
            previous=row.previous,
            policy=policies[row.id],
            aliases=tuple(alias for _, alias in sorted(aliases[row.id].items())),
            tags=dict(sorted(tags[row.id].items())),
            created=row.created,
            changed=row.changed,
        )
        for row in rows
    ]


def version(model: str, row: VersionRow) -> VersionRecord:
    can = row.capabilities
    return VersionRecord(
        model=model,
        number=row.number,
        digest=row.digest,
        spec=row.spec,
        state=VersionState(row.state),
        detail=row.detail,
        capabilities=Capabilities(
            features=frozenset(can["features"]),
            context=can["context"],
            languages=tuple(can["languages"]),
            pairs=tuple((source, target) for source, target in can["pairs"]),
            files=FileFacts(**can["files"]) if can.get("files") else None,
        ),
        created=row.created,
        created_by=row.created_by,
    )


async def artifacts(session: AsyncSession, model: int, number: int) -> tuple[Artifact, ...]:
    """The files of a version, by path."""
    query = select(ArtifactRow).where(ArtifactRow.model_id == model, ArtifactRow.number == number)
    found = (
        Artifact(row.path, row.source, row.size, row.sha256, row.licence, row.made_from)
        for row in await session.scalars(query)
    )
    return tuple(sorted(found, key=lambda file: file.path))


def policy(row: PolicyRow) -> PolicyRecord:
    return PolicyRecord(row.number, row.policy, row.created, row.created_by)


def audit(row: AuditRow) -> AuditRecord:
    return AuditRecord(row.id, row.at, row.who, row.action, row.model, row.before, row.after)
