"""Alembic runs this file for each command, on the connection that `modelyard.registry.schema` hands it, in
the transaction that is open there."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
