"""Pages, filters, and what they cost with a thousand models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.orm import DeclarativeBase

from modelyard.registry import Filter, Registry, VersionState
from modelyard.registry.tables import AuditRow, FacetRow, ModelRow, NameRow, PolicyRow, TagRow, VersionRow
from registry.making import register

MODELS, VERSIONS = 1000, 5


async def pages(registry: Registry, wanted: Filter, limit: int) -> list[list[str]]:
    found, after = [], None
    while True:
        page = await registry.list(wanted, after=after, limit=limit)
        found.append([model.name for model in page.models])
        after = page.after
        if after is None:
            return found


async def test_pages_are_by_name_and_leave_nothing_out(registry: Registry) -> None:
    made = ["b", "a/x", "A", "a", "z:1", "a-1", "B"]
    for name in made:
        await register(registry, name, "chat", aliases=[f"alias-of-{name}"])
    in_order = sorted(made)
    assert await pages(registry, Filter(), 100) == [in_order]
    assert await pages(registry, Filter(), 7) == [in_order]
    assert await pages(registry, Filter(), 3) == [in_order[:3], in_order[3:6], in_order[6:]]
    assert await pages(registry, Filter(capability="chat"), 4) == [in_order[:4], in_order[4:]]
    assert [len(page) for page in await pages(registry, Filter(), 0)] == [1] * 7
    page = await registry.list(after="a0", limit=1)
    assert [model.name for model in page.models] == ["b"]
    assert (await registry.list(after="zz")).models == ()


async def test_filters_hold_together(registry: Registry) -> None:
    for name, features in {"en-de": ("translation",), "de-en": ("translation",), "talk": ("chat",)}.items():
        await register(registry, name, *features)
    pair = await registry.get("en-de")
    capabilities = pair.current.capabilities
    translates = type(capabilities)(capabilities.features, pairs=(("en", "de"), ("en", "fr")))
    await registry.report("en-de", 1, VersionState.VERIFIED, who="server", capabilities=translates)

    async def found(**wanted: Any) -> list[str]:
        return [name for page in await pages(registry, Filter(**wanted), 2) for name in page]

    assert await found(capability="translation") == ["de-en", "en-de"]
    assert await found(capability="translation", state=VersionState.REGISTERED) == ["de-en"]
    assert await found(pair=("en", "de")) == await found(pair=("en", "fr")) == ["en-de"]
    assert await found(pair=("de", "en")) == []
    assert await found(pair=("en", "de"), capability="translation", state=VersionState.VERIFIED) == ["en-de"]
    assert await found(pair=("en", "de"), capability="chat") == []
    assert await found(name="EN", capability="translation") == ["de-en", "en-de"]
    assert await found(name="-d", capability="translation") == ["en-de"]
    assert await found(capability="nothing") == await found(name="nothing") == []


@pytest.mark.parametrize(
    ("part", "found"), [("_", ["a_b"]), ("%", []), ("\\", []), ("A_", ["a_b"]), ("", None)]
)
async def test_a_part_of_a_name_is_taken_literally(
    registry: Registry, part: str, found: list[str] | None
) -> None:
    for name in ("a_b", "acb"):
        await register(registry, name)
    expected = ["a_b", "acb"] if found is None else found
    assert [model.name for model in (await registry.list(Filter(name=part))).models] == expected


# -- many -----------------------------------------------------------------------------------------------


@pytest.fixture
async def many(registry: Registry) -> Registry:
    """A thousand models of five versions each."""
    await registry.open()
    times = {"created": 1.0}
    by = {"created_by": "ada", **times}
    can = {"features": ["chat"], "context": 4096, "languages": [], "pairs": [["en", "de"]]}
    rows: dict[type[DeclarativeBase], list[dict[str, Any]]] = {
        table: [] for table in (ModelRow, NameRow, VersionRow, TagRow, PolicyRow, FacetRow, AuditRow)
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
        # One model in ten can do something rare.
        facets = ["state:verified", "capability:chat", "pair:en>de", *["capability:rare"] * (id_ % 10 == 0)]
        rows[FacetRow] += [{"facet": facet, "name": name, **of} for facet in facets]
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


async def test_a_page_scans_no_table(many: Registry) -> None:
    wanted = Filter(pair=("en", "de"), capability="chat", state=VersionState.VERIFIED)
    reads: dict[str, Callable[[], Awaitable[object]]] = {
        "first": lambda: many.list(limit=10),
        "later": lambda: many.list(after="model-0500", limit=10),
        "rare": lambda: many.list(Filter(capability="rare"), limit=10),
        "all filters": lambda: many.list(wanted, limit=10),
        "one": lambda: many.get("alias-7"),
        "versions": lambda: many.versions("model-0007"),
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
    with statements(many) as seen_page:
        page = await many.list(limit=1000)
    assert len(seen_page) <= 5
    assert page.models == catalog.models
