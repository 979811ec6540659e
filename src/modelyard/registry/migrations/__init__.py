"""Alembic's revisions of the schema, run by `modelyard.registry.schema`."""
