"""Which files the policies of models keep, told without a server: for whoever works on its cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from modelyard.compose.additions import Additions
from modelyard.compose.registered import Holding, Making
from modelyard.config import Config
from modelyard.config.together import profile_of, together
from modelyard.engines import registry as engines
from modelyard.errors import StoreError
from modelyard.registry import Registry
from modelyard.runtime.entries import Entry
from modelyard.runtime.files import StoreFiles
from modelyard.store import Store


async def kept_files(config: Config, store: Store) -> set[Path]:
    """The files that `config`'s models and the registered ones keep though they do not run (see
    `Driver.kept_files`). Raises RegistryUnavailable and ConfigError where that cannot be told."""
    kept, files = set[Path](), StoreFiles(store)
    served = await _served(config)
    for model in served.models:
        if model.policy.keeps_files:
            profile = profile_of(served, model.spec.engine)
            entry = Entry(model.spec, model.policy, engines.load()[profile.type], profile)
            with suppress(StoreError):  # what cannot be used need not be kept
                found = await files.cached(entry) or {}
                kept |= {path for file in found.values() for path in file.paths}
    return kept


async def _served(config: Config) -> Config:
    """`config` with what its registry has; nothing is made or migrated for that."""
    registry, making = Registry(config.registry_url), Making()
    try:
        if not await registry.is_made():
            return config
        found = await registry.all()
    finally:
        await registry.close()
    additions = Additions(found.keys, found.profiles)
    base = additions.without(additions.problems(config)).to(config)
    holdings = [Holding(model, {model.current.number: model.current}) for model in found.models]
    return together(base, [making.model(base, holding) for holding in holdings])
