"""keys, engine profiles, usage, footprints; no more facets"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NAME = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")
FACET = sa.String(240).with_variant(sa.String(240, collation="C"), "postgresql")
VERSION = sa.String(300).with_variant(sa.String(300, collation="C"), "postgresql")
ID = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
SHA256 = sa.String(64)


def upgrade() -> None:
    op.drop_table("facets")
    op.create_table(
        "keys",
        sa.Column("name", NAME, nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("max_priority", sa.String(16), nullable=False),
        sa.Column("expires", sa.Double(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("created_by", NAME, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("keys_key")),
        sa.UniqueConstraint("sha256", name=op.f("keys_sha256_unique")),
    )
    op.create_table(
        "profiles",
        sa.Column("name", NAME, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("profile", sa.JSON(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.Column("changed_by", NAME, nullable=False),
        sa.CheckConstraint("revision >= 1", name=op.f("profiles_revision")),
        sa.PrimaryKeyConstraint("name", name=op.f("profiles_key")),
    )
    op.create_table(
        "usage",
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("key", NAME, nullable=False),
        sa.Column("model", NAME, nullable=False),
        sa.Column("version", VERSION, nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("loads", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "key", "model", "version", name=op.f("usage_key")),
    )
    op.create_table(
        "footprints",
        sa.Column("files", SHA256, nullable=False),
        sa.Column("engine", NAME, nullable=False),
        sa.Column("parameters", SHA256, nullable=False),
        sa.Column("device", NAME, nullable=False),
        sa.Column("footprint", sa.JSON(), nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("files", "engine", "parameters", "device", name=op.f("footprints_key")),
    )
    op.create_index(op.f("footprints_seen"), "footprints", ["seen"])


def downgrade() -> None:
    for table in ("footprints", "usage", "profiles", "keys"):
        op.drop_table(table)
    op.create_table(
        "facets",
        sa.Column("facet", FACET, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("facets_model_id_of"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("facet", "name", name=op.f("facets_key")),
    )
    op.create_index(op.f("facets_model_id"), "facets", ["model_id"])
