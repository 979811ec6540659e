"""What a spec says of every engine, in the words of its own: `batching` and `speculative` as parameters.

Used when a model is made as it is run on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from modelyard.core.types import Spec
from modelyard.engines.base import Engine


def told(spec: Spec, engine: Engine) -> tuple[Spec, list[tuple[str, str]]]:
    """The spec with those parameters, and what of it this engine cannot be told: (path below the model,
    message) each."""
    problems, parameters = [], dict(spec.parameters)
    for path, value in _said(spec):
        names = engine.spec_fields.get(path, ())
        if not names:
            problems.append((path, f"the engine {engine.type} cannot: leave it out, or name another engine"))
        problems += [
            (path, f"`parameters.{name}` says it as well: leave one of them out")
            for name in names
            if not _put(parameters, name, value)
        ]
    return replace(spec, parameters=parameters), problems


def _said(spec: Spec) -> Iterator[tuple[str, object]]:
    """The fields that are set, by their path."""
    for part, values in (("batching", asdict(spec.batching)), ("speculative", asdict(spec.speculative))):
        for name, value in values.items():
            if value and name != "quantize":  # the store's affair
                yield f"{part}.{name}", value


def _put(parameters: dict[str, object], name: str, value: object) -> bool:
    """Set a parameter by its dotted name; False where it is set already."""
    first, _, rest = name.partition(".")
    inner = parameters.get(first, {}) if rest else parameters
    if not isinstance(inner, Mapping) or (rest or first) in inner:
        return False
    parameters[first] = {**inner, rest: value} if rest else value
    return True
