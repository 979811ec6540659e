"""The digest that names a version: the same spec gives the same digest, on every machine and run.

Used by `build`. Policy is not in it.
"""

from __future__ import annotations

import json
from hashlib import sha256

from modelyard.core.types import Spec
from modelyard.engines.base import Profile


def spec_digest(spec: Spec, profile: Profile) -> str:
    """sha256 (hex) over the canonical JSON of what decides the process that is run: source, engine, what the
    profile adds, parameters, slots, devices and capabilities. Names of model and profile are not in it."""
    content = {
        "source": spec.source,
        "engine": profile.type,
        "program": profile.program,
        "environment": dict(profile.environment),
        "parameters": dict(spec.parameters),
        "slots": spec.slots,
        "devices": list(spec.devices),
        "capabilities": sorted(spec.capabilities),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(canonical.encode()).hexdigest()
