"""The tables. `migrations/` makes them; a change here needs a revision there.

Names of models and aliases stand in one table, so that none can mean two models. Prices are part of a
policy, and the history of prices is that of policies.
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
Version = String(300).with_variant(String(300, collation="C"), "postgresql")
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


class KeyRow(Base):
    """A key of the API. The secret itself is not kept."""

    __tablename__ = "keys"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    max_priority: Mapped[str] = mapped_column(String(16))
    expires: Mapped[float | None] = mapped_column(Double)
    created: Mapped[float] = mapped_column(Double)
    created_by: Mapped[str] = mapped_column(Name)


class ProfileRow(Base):
    """An engine profile, in the schema of an `engines:` entry of the configuration."""

    __tablename__ = "profiles"
    __table_args__ = (CheckConstraint("revision >= 1", "revision"),)

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    revision: Mapped[int]
    profile: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Double)
    changed: Mapped[float] = mapped_column(Double)
    changed_by: Mapped[str] = mapped_column(Name)


class UsageRow(Base):
    """What was asked of a version with one key within one hour. `hour` counts from the epoch; `key` is empty
    for requests without one, and for loads; `version` is its public name."""

    __tablename__ = "usage"

    hour: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    model: Mapped[str] = mapped_column(Name, primary_key=True)
    version: Mapped[str] = mapped_column(Version, primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Double)  # of slots
    loads: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[float] = mapped_column(Double)  # at the prices of then


class PairRow(Base):
    """How often a translation was asked for within one hour, from one language to another; `model` is empty
    for those that named none."""

    __tablename__ = "pairs"

    hour: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(Name, primary_key=True)
    target: Mapped[str] = mapped_column(Name, primary_key=True)
    model: Mapped[str] = mapped_column(Name, primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)


class FootprintRow(Base):
    """What instances of one kind really took, and how long they loaded."""

    __tablename__ = "footprints"

    files: Mapped[str] = mapped_column(String(64), primary_key=True)
    engine: Mapped[str] = mapped_column(Name, primary_key=True)
    parameters: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(Name, primary_key=True)
    footprint: Mapped[dict[str, Any]] = mapped_column(JSON)
    seen: Mapped[float] = mapped_column(Double, index=True)
