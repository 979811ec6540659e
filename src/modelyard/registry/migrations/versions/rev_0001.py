"""models, versions, names, tags, policies, files, audit"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")
FACET = sa.String(240).with_variant(sa.String(240, collation="C"), "postgresql")
ID = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
SHA256 = sa.String(64)


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("owner", NAME, nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("current", sa.Integer(), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("policy", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.CheckConstraint("current >= 1", name=op.f("models_current")),
        sa.CheckConstraint("revision >= 1", name=op.f("models_revision")),
        sa.PrimaryKeyConstraint("id", name=op.f("models_key")),
        sa.UniqueConstraint("name", name=op.f("models_name_unique")),
    )
    op.create_table(
        "names",
        sa.Column("name", NAME, nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        _model("names"),
        sa.PrimaryKeyConstraint("name", name=op.f("names_key")),
    )
    op.create_index(op.f("names_model_id"), "names", ["model_id"])
    op.create_table(
        "versions",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", SHA256, nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("created_by", NAME, nullable=False),
        sa.CheckConstraint("number >= 1", name=op.f("versions_number")),
        sa.CheckConstraint("state IN ('registered', 'verified', 'failed')", name=op.f("versions_state")),
        _model("versions"),
        sa.PrimaryKeyConstraint("model_id", "number", name=op.f("versions_key")),
        sa.UniqueConstraint("model_id", "digest", name=op.f("versions_model_id_digest_unique")),
    )
    op.create_table(
        "tags",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("tag", NAME, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        _version("tags"),
        sa.PrimaryKeyConstraint("model_id", "tag", name=op.f("tags_key")),
    )
    op.create_table(
        "policies",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("created_by", NAME, nullable=False),
        _model("policies"),
        sa.PrimaryKeyConstraint("model_id", "number", name=op.f("policies_key")),
    )
    _make_files()
    op.create_table(
        "facets",
        sa.Column("facet", FACET, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("model_id", ID, nullable=False),
        _model("facets"),
        sa.PrimaryKeyConstraint("facet", "name", name=op.f("facets_key")),
    )
    op.create_index(op.f("facets_model_id"), "facets", ["model_id"])
    _make_audit()
    _make_settings()


def downgrade() -> None:
    for table in (
        "settings",
        "audit",
        "facets",
        "artifacts",
        "policies",
        "tags",
        "versions",
        "names",
        "models",
    ):
        op.drop_table(table)


def _make_files() -> None:
    op.create_table(
        "artifacts",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(1024), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.Column("made_from", SHA256, nullable=True),
        sa.CheckConstraint("size >= 0", name=op.f("artifacts_size")),
        _version("artifacts"),
        sa.PrimaryKeyConstraint("model_id", "number", "path", name=op.f("artifacts_key")),
    )
    op.create_index(op.f("artifacts_sha256"), "artifacts", ["sha256"])


def _make_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", ID, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("who", NAME, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("model", NAME, nullable=False),
        sa.Column("before", sa.JSON(), nullable=True),
        sa.Column("after", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("audit_model_id"), "audit", ["model", "id"])


def _make_settings() -> None:
    settings = op.create_table(
        "settings",
        sa.Column("name", NAME, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("settings_key")),
    )
    op.bulk_insert(settings, [{"name": "digest_key", "value": secrets.token_hex(32)}])


def _model(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"{table}_model_id_of")
    return sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=name, ondelete="CASCADE")


def _version(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"{table}_model_id_number_of")
    columns, referred = ["model_id", "number"], ["versions.model_id", "versions.number"]
    return sa.ForeignKeyConstraint(columns, referred, name=name, ondelete="CASCADE")
