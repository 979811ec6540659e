"""The databases that a registry may live in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from modelyard.registry import Registry
from registry.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; each test that asks for one runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.emptied()


@pytest.fixture
async def registry(url: str) -> AsyncIterator[Registry]:
    found = Registry(url)
    yield found
    await found.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[Registry]:
    """Another server on the same database."""
    found = Registry(url)
    yield found
    await found.close()
