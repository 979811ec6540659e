"""What reading costs with a thousand models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.orm import DeclarativeBase

from modelyard.registry import Registry
from modelyard.registry.tables import AuditRow, ModelRow, NameRow, PolicyRow, TagRow, VersionRow

MODELS, VERSIONS = 1000, 5


@pytest.fixture
async def many(registry: Registry) -> Registry:
    """A thousand models of five versions each."""
    await registry.open()
    times = {"created": 1.0}
    by = {"created_by": "ada", **times}
    can = {"features": ["chat"], "context": 4096, "languages": [], "pairs": [["en", "de"]]}
    rows: dict[type[DeclarativeBase], list[dict[str, Any]]] = {
        table: [] for table in (ModelRow, NameRow, VersionRow, TagRow, PolicyRow, AuditRow)
    }
    for id_ in range(1, MODELS + 1):
        name, of = f"model-{id_:04}", {"model_id": id_}
        model = {"id": id_, "name": name, "owner": "ada", "description": "", "revision": 1, "current": 5}
        rows[ModelRow].append({**model, "previous": 4, "policy": 1, "changed": 1.0, **times})
        rows[NameRow] += [{"name": name, "place": 0, **of}, {"name": f"alias-{id_}", "place": 1, **of}]
        rows[PolicyRow].append({"number": 1, "policy": {"pin": True}, **of, **by})
        for number in range(1, VERSIONS + 1):
            version = {"number": number, "digest": f"{number:064}", "state": "verified", "detail": ""}
            spec = {"engine": "fake", "parameters": {"text": "x" * 500}}
            rows[VersionRow].append({**version, "spec": spec, "capabilities": can, **of, **by})
        rows[TagRow].append({"tag": "prod", "number": 5, **of})
        entry = {"at": 1.0, "who": "ada", "action": "register", "model": name, "before": None}
        rows[AuditRow].append({**entry, "after": {}})
    async with registry._database.writing() as session:
        for table, values in rows.items():
            await session.execute(insert(table), values)
    async with registry._database.engine.connect() as connection:
        await connection.execute(text("ANALYZE"))
        await connection.commit()
    return registry


@contextmanager
def statements(registry: Registry) -> Iterator[list[tuple[str, Any]]]:
    """The queries that are made meanwhile."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    engine = registry._database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


async def test_what_is_of_one_model_scans_no_table(many: Registry) -> None:
    reads: dict[str, Callable[[], Awaitable[object]]] = {
        "one": lambda: many.get("alias-7"),
        "files": lambda: many.artifacts("model-0007", 5),
        "policies": lambda: many.policies("model-0007"),
        "log": lambda: many.audit("model-0007"),
    }
    for what, read in reads.items():
        with statements(many) as seen:
            await read()
        assert seen
        assert await scans(many, seen) == [], what


async def scans(registry: Registry, seen: list[tuple[str, Any]]) -> list[str]:
    """The steps of these queries' plans that go through a whole table or index."""
    found = []
    sqlite = registry._database.file is not None
    async with registry._database.engine.connect() as connection:
        if not sqlite:  # it prefers to read small tables as a whole; this asks whether it has to
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        for statement, parameters in seen:
            prefix = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
            plan = await connection.exec_driver_sql(prefix + statement, parameters)
            lines = [str(row[-1]) for row in plan]
            bad = ("SCAN ", "Seq Scan", "B-TREE", "Sort")
            found += [f"{line} in {statement}" for line in lines if any(word in line for word in bad)]
    return found


async def test_the_catalog_takes_as_many_queries_however_many_models(many: Registry) -> None:
    with statements(many) as seen:
        catalog = await many.all()
    assert len(seen) <= 8
    assert (len(catalog.models), len(catalog.versions)) == (MODELS, MODELS)
    assert all(len(versions) == VERSIONS for versions in catalog.versions.values())
