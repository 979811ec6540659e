"""The tables. `migrations/` makes them; a change here needs a revision there.

Names of models and aliases stand in one table, so that none can mean two models. `facets` are what a list can
be filtered by, of each model's current version, ordered by the model's name: a page is read in one walk along
an index, however many models there are.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# The same order in every database: that of the bytes.
Name = String(200).with_variant(String(200, collation="C"), "postgresql")
Facet = String(240).with_variant(String(240, collation="C"), "postgresql")
Id = Integer().with_variant(BigInteger(), "postgresql")
CONVENTION = {
    "ix": "%(table_name)s_%(column_0_N_name)s",
    "uq": "%(table_name)s_%(column_0_N_name)s_unique",
    "ck": "%(table_name)s_%(constraint_name)s",
    "fk": "%(table_name)s_%(column_0_N_name)s_of",
    "pk": "%(table_name)s_key",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=CONVENTION)


class ModelRow(Base):
    __tablename__ = "models"
    __table_args__ = (
        CheckConstraint("revision >= 1", "revision"),
        CheckConstraint("current >= 1", "current"),
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name, unique=True)
    owner: Mapped[str] = mapped_column(Name)
    description: Mapped[str] = mapped_column(Text)
    revision: Mapped[int]
    current: Mapped[int]
    previous: Mapped[int | None]
    policy: Mapped[int]  # the number of the one that holds
    created: Mapped[float] = mapped_column(Double)
    changed: Mapped[float] = mapped_column(Double)


def _model() -> Any:
    return ForeignKey(ModelRow.id, ondelete="CASCADE")


def _version() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["model_id", "number"], ["versions.model_id", "versions.number"], ondelete="CASCADE"
    )


class NameRow(Base):
    """A name of a model: its own, or an alias."""

    __tablename__ = "names"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    model_id: Mapped[int] = mapped_column(Id, _model(), index=True)
    place: Mapped[int]  # 0: its own name; aliases count from 1


class VersionRow(Base):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("model_id", "digest"),
        CheckConstraint("number >= 1", "number"),
        CheckConstraint("state IN ('registered', 'verified', 'failed')", "state"),
    )

    model_id: Mapped[int] = mapped_column(Id, _model(), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text)
    capabilities: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Double)
    created_by: Mapped[str] = mapped_column(Name)


class TagRow(Base):
    __tablename__ = "tags"
    __table_args__ = (_version(),)

    model_id: Mapped[int] = mapped_column(Id, primary_key=True)
    tag: Mapped[str] = mapped_column(Name, primary_key=True)
    number: Mapped[int]


class PolicyRow(Base):
    """Each policy that a model had; none is ever changed."""

    __tablename__ = "policies"

    model_id: Mapped[int] = mapped_column(Id, _model(), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    policy: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Double)
    created_by: Mapped[str] = mapped_column(Name)


class ArtifactRow(Base):
    """A file of a version."""

    __tablename__ = "artifacts"
    __table_args__ = (_version(), CheckConstraint("size >= 0", "size"))

    model_id: Mapped[int] = mapped_column(Id, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(String(1024), primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    licence: Mapped[str] = mapped_column(Text)
    made_from: Mapped[str | None] = mapped_column(String(64))


class FacetRow(Base):
    __tablename__ = "facets"

    facet: Mapped[str] = mapped_column(Facet, primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    model_id: Mapped[int] = mapped_column(Id, _model(), index=True)


class AuditRow(Base):
    """One change. It outlives its model."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "model", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    at: Mapped[float] = mapped_column(Double)
    who: Mapped[str] = mapped_column(Name)
    action: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(Name)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class SettingRow(Base):
    """What all servers of one registry share."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(Text)
