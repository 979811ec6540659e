"""Alembic runs this file for each command, on the connection that `modelyard.registry.schema` hands it."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    transactional_ddl=True,  # both databases: all of it is made, or nothing
)
context.run_migrations()
