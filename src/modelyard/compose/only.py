"""A part of a configuration: the models that translate, and no others, whose engines need not be there.

Used by `serve --only translation`.
"""

from __future__ import annotations

from dataclasses import replace

from modelyard.config import Config
from modelyard.engines import registry
from modelyard.engines.base import TRANSLATE
from modelyard.errors import ConfigError


def translation(config: Config) -> Config:
    """The configuration with those models alone. Raises ConfigError when there is none."""
    engines = registry.load()
    models = tuple(
        model
        for model in config.models
        if TRANSLATE in engines[config.profiles[model.spec.engine].type].paths(model.spec)
    )
    if not models:
        raise ConfigError("models", "none of them translates, and `--only translation` serves no others")
    names = {name for model in models for name in (model.spec.model, *model.aliases)}
    setting = config.translation
    return replace(
        config,
        models=models,
        preload=tuple(name for name in config.preload if name in names),
        translation=replace(
            setting,
            llm=setting.llm if setting.llm in names else "",
            fallback=setting.fallback if setting.fallback in names else "",
        ),
    )
