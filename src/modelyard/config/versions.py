"""The digest that names a version: the same spec gives the same digest, on every machine and run. Policy is
not in it.

Digests are told to everybody who may ask for an answer. So that nobody can try secrets against one, those of
specs that may hold any (an environment, parameters that were filled from one or look like a secret) are
salted anew by each process.

Used by `build`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256
from secrets import token_hex

from modelyard.config.secrets import HIDDEN, plain
from modelyard.core.types import Spec, WarmUp
from modelyard.engines.base import Profile

_SALT = token_hex(32)


def spec_digest(spec: Spec, profile: Profile, *, filled: bool) -> str:
    """sha256 (hex) over the canonical JSON of what decides the process that is run: source, engine, what the
    profile adds, parameters, slots, devices and capabilities. Names of model and profile are not in it.
    `filled`: a parameter took something from the environment."""
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
    if spec.warm_up != WarmUp():  # a version that says nothing of it keeps its name
        content["warm_up"] = asdict(spec.warm_up)
    content |= {"sha256": spec.sha256} if spec.sha256 else {}
    content |= {"allow_pickle": True} if spec.allow_pickle else {}
    if filled or profile.environment or HIDDEN in json.dumps(plain(spec.parameters), ensure_ascii=False):
        content["salt"] = _SALT
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(canonical.encode()).hexdigest()
