"""What is served: the models of a configuration and those that were registered, under one set of names.

Pure. Used by compose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from modelyard.config.problems import ConfigErrors, Problem
from modelyard.config.values import Config, Model, nearest
from modelyard.engines.base import Profile


class NameClash(ConfigErrors):
    """Names that a configuration and registered models both have; `models` are those registered ones."""

    def __init__(self, problems: Iterable[Problem], models: Iterable[str]) -> None:
        super().__init__(problems)
        self.models = frozenset(models)


def together(base: Config, registered: Iterable[Model]) -> Config:
    """`base` with the registered models behind its own. Raises NameClash, at the place in the configuration,
    for a name or alias that both have."""
    registered = tuple(registered)
    theirs = {name: model.spec.model for model in registered for name in _names(model)}
    problems = [
        Problem(
            model.path if name == model.spec.model else f"{model.path}.aliases",
            f"'{name}' is a name of {theirs[name]}, which was registered while the server ran; use another "
            f"name, or serve without this one and remove that (`modelyard rm {theirs[name]}`)",
            nearest(base.positions, model.path) or "",
        )
        for model in base.models
        for name in _names(model)
        if name in theirs
    ]
    if problems:
        taken = {name for model in base.models for name in _names(model)}
        raise NameClash(problems, (theirs[name] for name in taken & theirs.keys()))
    engines = sorted({model.spec.engine for model in registered})
    return replace(
        base,
        models=(*base.models, *registered),
        profiles={**base.profiles, **{engine: profile_of(base, engine) for engine in engines}},
        preload=(*base.preload, *(model.spec.model for model in registered if model.policy.preload)),
    )


def profile_of(config: Config, engine: str) -> Profile:
    """The profile that a model names; an engine's type is one that adds nothing."""
    return config.profiles.get(engine) or Profile(name=engine, type=engine)


def _names(model: Model) -> tuple[str, ...]:
    return (model.spec.model, *model.aliases)
