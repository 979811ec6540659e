"""A configuration as a scene for `replay` and `advise`: the models and devices that `serve` would have."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.config import Config
from modelyard.config import load as load_config
from modelyard.core.types import Device, Need, Share
from modelyard.errors import ConfigError
from modelyard.sim.scene import GB, Loadable, Rules, Scene
from modelyard.telemetry import log_output

if TYPE_CHECKING:
    from modelyard.compose import Yard
    from modelyard.runtime.entries import Entry


def of_config(path: Path, said: Mapping[str, int], rules: Rules) -> Scene:
    """The scene of a configuration file. `said`: bytes of models, in place of what is known. Raises
    ConfigError, also for models whose size nobody knows."""
    log_output.configure(quiet=True)
    return asyncio.run(_scene(load_config(path), said, rules))


async def _scene(config: Config, said: Mapping[str, int], rules: Rules) -> Scene:
    names = [model.spec.model for model in config.models]
    for name in said:
        if name not in names:
            raise ConfigError("--size", f"there is no model '{name}'")
    if not names:
        raise ConfigError("models", "there is none, so there is nothing to replay on")
    models, devices = await _found(config, said, rules)
    budgets = ", ".join(f"{device.id} {device.budget / GB:.3g} GB" for device in devices)
    recorded = sum(1 for model in models if model.load != rules.load(model.need))
    assumed = [
        f"devices: {budgets}; nobody else takes memory there",
        f"{len(models)} models; load times of {recorded} of them as recorded or configured, else by rule",
    ]
    if config.preload_auto:
        assumed.append("preload: auto depends on past demand: nothing is preloaded")
    versions = {model.spec.model: model.spec.version for model in models}
    preload = tuple(versions[name] for name in config.preload)
    return Scene(devices, tuple(models), rules, preload, config.server.queue_bound, tuple(assumed))


async def _found(
    config: Config, said: Mapping[str, int], rules: Rules
) -> tuple[list[Loadable], tuple[Device, ...]]:
    """The models and the devices of this machine. A server that runs on the same data folder is not touched:
    the yard is never started, it only looks at files."""
    from modelyard import compose

    yard = await compose.build(config)
    try:
        await yard.keeping.look()
        for entry in yard.names.all():
            await yard.driver.examine(entry)
        return _models(config, yard, said, rules), yard.driver.devices.all
    finally:
        await yard.close()


def _models(config: Config, yard: Yard, said: Mapping[str, int], rules: Rules) -> list[Loadable]:
    models, unknown = [], []
    for model in config.models:
        entry = yard.names.resolve(model.spec.model)
        need = _said(entry, said) or entry.estimate
        if need is None:
            unknown.append(model.spec.model)
            continue
        need = replace(need, known=True)
        load = yard.driver.observer.usual_load(entry) or _configured_load(entry) or rules.load(need)
        models.append(Loadable(entry.spec, model.policy, need, load, model.aliases))
    if unknown:
        message = "its size is not known: have its files here (`modelyard pull`), or say it: " + " ".join(
            f"--size {name}=8GB" for name in unknown[:5]
        )
        raise ConfigError(f"models.{unknown[0]}", message)
    return models


def _said(entry: Entry, said: Mapping[str, int]) -> Need | None:
    size = said.get(entry.spec.model)
    if size is None:
        return None
    return Need((Share("ram" if entry.spec.devices == ("ram",) else "accelerator", size),))


def _configured_load(entry: Entry) -> float | None:
    """A fake engine's load time is a parameter of its model."""
    seconds = entry.spec.parameters.get("load_time")
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None
