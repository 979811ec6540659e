"""The registry: models, their versions and policies, in SQLite or PostgreSQL.

Called by compose, the gateway and the command line; imported late, since SQLAlchemy and Alembic take long to
load. It knows names, specs and digests, and nothing of engines, files or instances.
"""

from modelyard.registry.records import (
    Added,
    Artifact,
    AuditRecord,
    Capabilities,
    Catalog,
    Json,
    KeyRecord,
    ModelRecord,
    NewVersion,
    PolicyRecord,
    ProfileRecord,
    VersionRecord,
    VersionState,
)
from modelyard.registry.registry import Registry

__all__ = [
    "Added",
    "Artifact",
    "AuditRecord",
    "Capabilities",
    "Catalog",
    "Json",
    "KeyRecord",
    "ModelRecord",
    "NewVersion",
    "PolicyRecord",
    "ProfileRecord",
    "Registry",
    "VersionRecord",
    "VersionState",
]
