"""Models as data: what is registered, read and changed, in one database.

Called by compose and by the HTTP API. It keeps specs and policies and does not interpret them; it never loads
or unloads anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from modelyard.errors import RegistryUnavailable, VersionNotFound
from modelyard.registry import changing, checks, loading, schema
from modelyard.registry.changing import Change
from modelyard.registry.database import Database
from modelyard.registry.footprints import FootprintBook
from modelyard.registry.keys import Keys
from modelyard.registry.keys import load as load_keys
from modelyard.registry.profiles import Profiles, check_kept
from modelyard.registry.profiles import load as load_profiles
from modelyard.registry.records import (
    LARGEST_PAGE,
    Added,
    Artifact,
    AuditRecord,
    Capabilities,
    Catalog,
    Json,
    ModelRecord,
    NewVersion,
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
    SettingRow,
    TagRow,
)
from modelyard.registry.usage import UsageBook

LARGEST_ID = 2**63 - 1
OPENING = 15.0  # seconds that a call waits for a migration


class Registry:
    """The models of one database. Any number of them, in any number of processes, may share it.

    Where a method takes a `name`, an alias does as well. A change is made by `who` (for the audit log),
    counts the model's revision up and returns the model as it is then. `match` is the revision that the
    change was made for: when the model has another by now, RevisionMismatch. Methods raise ModelNotFound,
    InvalidRequest for a value that cannot be kept, and RegistryUnavailable while the database is away: the
    change is not made then, except when only the answer to its commit was lost.
    """

    def __init__(self, url: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        """`url` may be the file of an SQLite database. Connects to nothing. Raises ConfigError for a URL that
        names no database of a known kind."""
        self._database = Database(url)
        self._clock = clock
        self.usage = UsageBook(self._reading, self._writing, clock)
        self.footprints = FootprintBook(self._reading, self._writing)
        self._opening: asyncio.Task[schema.Migrated] | None = None  # done and without an error: it is open
        self.keys = Keys(self._writing)
        self.profiles = Profiles(self._writing)
        self._own: set[int] = set()  # ids in the audit log of what was changed through this object

    @property
    def name(self) -> str:
        """The database for people, without a password."""
        return self._database.name

    @property
    def exists(self) -> bool:
        """Whether there may be something in it: False when SQLite's file is still to be made."""
        return self._database.file is None or self._database.file.exists()

    async def open(self) -> schema.Migrated:
        """Bring the schema up to date, once; every other method does it when this was not called, or failed.
        A migration goes on when its caller is cancelled, until `close`. Raises ConfigError when a newer
        program has made the schema."""
        task = self._opening
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._opening = asyncio.create_task(schema.migrate(self._database))
            task.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # seen, if by nobody else
        return await asyncio.shield(task)

    async def is_made(self) -> bool:
        """Whether it has tables. Changes nothing. Raises RegistryUnavailable where a method that reads them
        would have to migrate them."""
        applied = [revision.applied for revision in await schema.show(self._database)]
        if any(applied) and not all(applied):
            raise RegistryUnavailable(f"{self.name} has an older schema; `modelyard migrate up` changes that")
        return any(applied)

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await self._database.close()

    # -- reading ----------------------------------------------------------------------------------------

    async def get(self, name: str) -> ModelRecord:
        async with self._reading() as session:
            return await changing.record(session, await changing.find(session, name))

    async def all(self) -> Catalog:
        """Everything, in a number of queries that does not grow with it."""
        async with self._reading() as session:
            stamp = await changing.stamp(session)
            models, versions = await loading.everything(session)
            keys, profiles = await load_keys(session), await load_profiles(session)
        return Catalog(stamp, tuple(models), versions, keys, profiles)

    async def stamp(self) -> int:
        """The stamp that `all` would have now: another one tells that any server has changed something."""
        async with self._reading() as session:
            return await changing.stamp(session)

    def made_all(self, since: int, until: int) -> bool:
        """Whether each change behind the stamp `since` up to `until` was made through this object. It
        remembers only those behind `until` from then on."""
        own, self._own = self._own, {one for one in self._own if one > until}
        return until - since == sum(since < one <= until for one in own)

    async def artifacts(self, name: str, number: int) -> tuple[Artifact, ...]:
        """The files of a version, by path. Raises VersionNotFound."""
        async with self._reading() as session:
            model = await changing.find(session, name)
            await changing.version(session, model, number)
            return await loading.artifacts(session, model.id, number)

    async def policies(
        self, name: str, *, before: int | None = None, limit: int = 50
    ) -> tuple[PolicyRecord, ...]:
        """The policies that the model had, the newest first, which holds; older than the one with the number
        `before`."""
        async with self._reading() as session:
            model = await changing.find(session, name)
            query = select(PolicyRow).where(PolicyRow.model_id == model.id).order_by(PolicyRow.number.desc())
            if before is not None:
                query = query.where(PolicyRow.number < before)
            rows = await session.scalars(query.limit(max(1, min(limit, LARGEST_PAGE))))
            return tuple(loading.policy(row) for row in rows)

    async def audit(
        self, name: str | None = None, *, before: int | None = None, limit: int = 50
    ) -> tuple[AuditRecord, ...]:
        """Changes, the newest first, older than the one whose id is `before`; of one model (by the name that
        it has or had) or of all."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(max(1, min(limit, LARGEST_PAGE)))
        if name is not None:
            query = query.where(AuditRow.model == checks.text_of(name, "name"))
        if before is not None:
            query = query.where(AuditRow.id < max(0, min(before, LARGEST_ID)))
        async with self._reading() as session:
            return tuple(loading.audit(row) for row in await session.scalars(query))

    async def digest_key(self) -> str:
        """The random key (hex) of digests that might give a secret away: the same for all servers."""
        async with self._reading() as session:
            query = select(SettingRow.value).where(SettingRow.name == "digest_key")
            return (await session.scalars(query)).one()

    # -- changes ----------------------------------------------------------------------------------------

    async def register(
        self,
        name: str,
        version: NewVersion,
        *,
        who: str,
        policy: Json | None = None,
        aliases: Iterable[str] = (),
        description: str = "",
    ) -> ModelRecord:
        """A model with its first version, which becomes the current one. Raises NameTaken, SpecRefused."""
        name, who, now = checks.name_of(name), checks.who_of(who), self._clock()
        aliases = checks.aliases_of(aliases, name)
        description = checks.text_of(description, "description")
        columns, kept = checks.version_of(version), checks.json_of(policy or {}, "policy")
        async with self._writing() as session:
            await changing.refuse_taken(session, (name, *aliases), None)
            model = ModelRow(name=name, owner=who, description=description, created=now)
            model.revision, model.current, model.previous, model.policy = 1, 1, None, 1
            change = Change(session, model, who, now)
            await change.add_names((name, *aliases), first=0)
            await change.add_version(1, columns)
            await check_kept(session, version)
            change.add_policy(kept)
            given = {"policy": kept, "aliases": aliases, "description": description}
            await change.log("register", None, {"version": 1, **columns, **given})
            return await changing.record(session, model)

    async def add_version(
        self, name: str, version: NewVersion, *, who: str, match: int | None = None
    ) -> Added:
        """A further version. The current one stays. Where the model has a version with this digest, that one
        is returned, and nothing is changed. Raises SpecRefused."""
        columns = checks.version_of(version)
        async with self._changing(name, who) as change:
            if row := await change.version_with(version.digest):
                record = await changing.record(change.session, change.model)
                return Added(record, loading.version(record.name, row), False)
            change.refuse_other(match)
            await check_kept(change.session, version)
            row = await change.add_version(await change.last_version() + 1, columns)
            record = await change.done("add_version", None, {"version": row.number, **columns})
            return Added(record, loading.version(record.name, row), True)

    async def set_current(self, name: str, number: int, *, who: str, match: int | None = None) -> ModelRecord:
        """Promote a version; the one before it is `previous` then (unless it is the current one already).
        To roll back, promote `previous`. Raises VersionNotFound."""
        async with self._changing(name, who, match) as change:
            model = change.model
            await changing.version(change.session, model, number)
            before = {"current": model.current, "previous": model.previous}
            if number != model.current:
                model.current, model.previous = number, model.current
            after = {"current": model.current, "previous": model.previous}
            return await change.done("set_current", before, after)

    async def tag(
        self, name: str, tag: str, number: int, *, who: str, match: int | None = None
    ) -> ModelRecord:
        """Have the tag name this version, whichever it named before. Raises VersionNotFound."""
        checks.tag_of(tag)
        async with self._changing(name, who, match) as change:
            session, model = change.session, change.model
            await changing.version(session, model, number)
            row = await session.get(TagRow, (model.id, tag))
            before = {tag: row.number if row else None}
            if row is None:
                await change.refuse_many(TagRow, checks.MOST_TAGS)
                session.add(TagRow(model_id=model.id, tag=tag, number=number))
            else:
                row.number = number
            return await change.done("tag", before, {tag: number})

    async def untag(self, name: str, tag: str, *, who: str, match: int | None = None) -> ModelRecord:
        """Raises VersionNotFound when the model has no such tag."""
        checks.tag_of(tag)
        async with self._changing(name, who, match) as change:
            row = await change.session.get(TagRow, (change.model.id, tag))
            if row is None:
                raise VersionNotFound(f"the model '{change.model.name}' has no tag '{tag}'", param="tag")
            await change.session.delete(row)
            return await change.done("untag", {tag: row.number}, {tag: None})

    async def update(
        self,
        name: str,
        *,
        who: str,
        policy: Json | None = None,
        aliases: Iterable[str] | None = None,
        description: str | None = None,
        match: int | None = None,
    ) -> ModelRecord:
        """Change what is not None, each as a whole, in one step; a policy that is replaced stays in the
        history. Raises NameTaken."""
        kept = None if policy is None else checks.json_of(policy, "policy")
        async with self._changing(name, who, match) as change:
            model, old = change.model, await changing.record(change.session, change.model)
            before: dict[str, object] = {}
            after: dict[str, object] = {}
            if kept is not None:
                before["policy"], after["policy"] = old.policy, kept
                model.policy += 1
                change.add_policy(kept)
            if aliases is not None:
                wanted = checks.aliases_of(aliases, model.name)
                before["aliases"], after["aliases"] = old.aliases, wanted
                await changing.refuse_taken(change.session, wanted, model)
                await change.drop(NameRow, NameRow.place > 0)
                await change.add_names(wanted, first=1)
            if description is not None:
                before["description"], after["description"] = old.description, description
                model.description = checks.text_of(description, "description")
            return await change.done("update", before, after)

    async def report(
        self,
        name: str,
        number: int,
        state: VersionState,
        *,
        who: str,
        detail: str = "",
        capabilities: Capabilities | None = None,
        artifacts: Iterable[Artifact] | None = None,
    ) -> VersionRecord:
        """What was found out about a version: its state, and what its files say. What is None stays as it is.
        It is no change of the model, whose revision stays; what was known already is not written again.
        Raises VersionNotFound."""
        checks.text_of(detail, "detail")
        can = None if capabilities is None else checks.capabilities_of(capabilities)
        files = None if artifacts is None else checks.artifacts_of(artifacts)
        async with self._changing(name, who) as change:
            model, row = change.model, await changing.version(change.session, change.model, number)
            before: dict[str, object] = {"version": number, "state": row.state, "detail": row.detail}
            after: dict[str, object] = {"version": number, "state": state.value, "detail": detail}
            if can is not None:
                before["capabilities"], after["capabilities"] = row.capabilities, can
            if files is not None:
                before["artifacts"], after["artifacts"] = await change.artifacts(number), files
            if before == after:
                return loading.version(model.name, row)
            row.state, row.detail, row.capabilities = state.value, detail, can or row.capabilities
            if files is not None:
                await change.drop(ArtifactRow, ArtifactRow.number == number)
                change.add_artifacts(number, files)
            await change.log("report", before, after)
            return loading.version(model.name, row)

    async def delete(self, name: str, *, who: str, match: int | None = None) -> ModelRecord:
        """The model with all that belongs to it, aliases too; the audit log stays. Returns what it was."""
        async with self._changing(name, who, match) as change:
            gone = await changing.record(change.session, change.model)
            current = gone.current
            before = {
                "revision": gone.revision,
                "current": current.number,
                "digest": current.digest,
                "spec": current.spec,
                "policy": gone.policy,
                "aliases": gone.aliases,
            }
            await change.session.execute(delete(ModelRow).where(ModelRow.id == change.model.id))
            await change.log("delete", before, None)
            return gone

    # -- sessions ---------------------------------------------------------------------------------------

    async def _opened(self) -> None:
        try:
            async with asyncio.timeout(OPENING):
                await self.open()
        except TimeoutError:
            raise RegistryUnavailable(
                f"the registry's database ({self.name}) is being brought to this program's schema"
            ) from None

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncSession]:
        await self._opened()
        async with self._database.reading() as session:
            yield session

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncSession]:
        await self._opened()
        async with self._database.writing() as session:
            yield session
        self._own.update(session.info.get(changing.LOGGED, ()))

    @asynccontextmanager
    async def _changing(self, name: str, who: str, match: int | None = None) -> AsyncIterator[Change]:
        """A change of one model, which nobody else changes meanwhile."""
        who = checks.who_of(who)
        async with self._writing() as session:
            change = Change(session, await changing.find(session, name, lock=True), who, self._clock())
            change.refuse_other(match)
            yield change
