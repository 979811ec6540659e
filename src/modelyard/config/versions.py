"""The digest that names a version: the same spec gives the same digest, on every machine and run. Policy is
not in it.

Digests are told to everybody who may ask for an answer. So that nobody can try secrets against one, those of
specs that may hold any (an environment, parameters that were filled from one or look like a secret) hold a
random key too: one of this process until `keyed` has put in the one of the registry, which lasts.

Used by `build` and by compose.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from hashlib import sha256
from secrets import token_hex

from modelyard.config.problems import is_below
from modelyard.config.secrets import HIDDEN, plain, shown
from modelyard.config.values import Config, Model
from modelyard.core.types import Batching, Parallel, Spec, Speculative, WarmUp
from modelyard.engines.base import Profile

_OWN_KEY = token_hex(32)


def keyed(config: Config, key: str) -> Config:
    """The same configuration, with the digests of its models made with this key (any text)."""

    def one(model: Model) -> Model:
        places = (f"{model.path}.parameters", f"engines.{model.spec.engine}.defaults")
        filled = any(is_below(one, place) for place in places for one in config.filled)
        digest = spec_digest(model.spec, config.profiles[model.spec.engine], filled=filled, key=key)
        return replace(model, spec=replace(model.spec, digest=digest))

    return replace(config, models=tuple(one(model) for model in config.models))


def spec_digest(spec: Spec, profile: Profile, *, filled: bool, key: str = _OWN_KEY) -> str:
    """sha256 (hex) over the canonical JSON of what decides the process that is run: source, engine, what the
    profile adds, parameters, slots, devices, capabilities, pairs and warm-up. Names of model and profile are
    not in it. `filled`: a parameter took something from the environment."""
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
    content |= {"quantize": spec.quantize} if spec.quantize else {}
    content |= {"sha256": spec.sha256} if spec.sha256 else {}
    content |= {"allow_pickle": True} if spec.allow_pickle else {}
    content |= {"parallel": asdict(spec.parallel)} if spec.parallel != Parallel() else {}
    content |= {"batching": asdict(spec.batching)} if spec.batching != Batching() else {}
    content |= {"speculative": asdict(spec.speculative)} if spec.speculative != Speculative() else {}
    if spec.pairs:
        content["pairs"] = [list(pair) for pair in sorted(spec.pairs.listed)]
        content["languages"] = sorted(spec.pairs.among)
    secret = any(shown(source) != source for source in (spec.source, spec.speculative.draft))
    if (
        secret
        or filled
        or profile.environment
        or HIDDEN in json.dumps(plain(spec.parameters), ensure_ascii=False)
    ):
        content["salt"] = key
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(canonical.encode()).hexdigest()
