"""From pydantic's errors to ours: the dotted path, one plain sentence, and the field that was meant.

Used by `build` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from modelyard.config.problems import Problem, join, near_miss
from modelyard.config.schema import ModelSection, Root
from modelyard.config.shapes import NAME
from modelyard.config.text import Document
from modelyard.config.values import nearest

# Fields that go by another name elsewhere.
_MEANT = {
    "alias": "aliases",
    "engine_path": "program",
    "parallel": "slots",
    "path": "source",
    "ttl": "keep_alive",
}
_SENTENCES = {
    "missing": "is required",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "list_type": "must be a list",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long",
    "too_short": "must name at least one",
}


def validate(document: Document) -> Root:
    """The sections of a document. Each value of a wrong shape is added to its problems and left out here, so
    that the rest can still be checked."""
    positions = {path: str(at) for path, at in document.positions.items()}
    tree = deepcopy(document.tree)
    reported = False
    while True:
        try:
            return Root.model_validate(tree)
        except ValidationError as error:
            details = error.errors(include_input=False, include_url=False, include_context=True)
            # Leaving a value out may leave a required field missing: a second pass is not news to the reader.
            if not reported:
                document.problems += [_problem(detail, positions) for detail in details]
            reported = True
            for detail in details:
                _leave_out(tree, detail["loc"])


def _leave_out(tree: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Delete the deepest mapping entry on the way to a location. Lists go as a whole: indexes stay true."""
    parts = [part for part in location if part != "[key]"]
    holder: dict[str, Any] = tree
    for part in parts[:-1]:
        below = holder.get(str(part))
        if not isinstance(below, dict) or (part == parts[-2] and parts[-1] not in below):
            holder.pop(str(part), None)
            return
        holder = below
    holder.pop(str(parts[-1]), None)


def _problem(detail: ErrorDetails, positions: Mapping[str, str]) -> Problem:
    path, location = "", detail["loc"]
    is_name = location[-1:] == ("[key]",)
    for part in location[:-1] if is_name else location:
        path = join(path, part)
    return Problem(path, _sentence(detail, is_name), nearest(positions, path) or "")


def _sentence(detail: ErrorDetails, is_name: bool) -> str:
    kind, location = detail["type"], detail["loc"]
    if is_name:
        return _no_name(location)
    if kind == "extra_forbidden":
        return _unknown(location)
    if kind == "value_error":
        return str(detail.get("ctx", {}).get("error", detail["msg"]))
    if kind in ("literal_error", "enum"):
        return f"must be {detail['ctx']['expected']}"
    if kind == "string_pattern_mismatch":
        pattern = detail["ctx"]["pattern"]
        return _no_name(location) if pattern == NAME else f"does not match {pattern}"
    return _SENTENCES.get(kind, detail["msg"])


def _no_name(location: tuple[int | str, ...]) -> str:
    said = "is not a name; use letters, digits and . _ : / + -"
    if location[0] == "models":
        return f"{said} (an `@` would stand before a version's digest, as in `qwen@3f9a0c`)"
    return f"{said} (a variable's: letters, digits, _)"


def _unknown(location: tuple[int | str, ...]) -> str:
    section, name = _section(location[:-1]), str(location[-1])
    known = list(section.model_fields) if section else []
    if _MEANT.get(name) in known:
        return f"is not a field here; did you mean '{_MEANT[name]}'?"
    hint = near_miss(name, known)
    if not hint and section is ModelSection:
        hint = "; settings of the engine go under `parameters:`"
    return f"is not a field here{hint or '; known are ' + ', '.join(sorted(known))}"


def _section(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The section that a location leads to, by walking the annotations."""
    kind: Any = Root
    for part in location:
        kind = _without_none(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(part)].annotation
        elif get_origin(kind) in {dict, list}:
            kind = get_args(kind)[-1]
        else:
            return None
    kind = _without_none(kind)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _without_none(kind: Any) -> Any:
    """`X` of `X | None`."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    return parts[0] if get_origin(kind) in {Union, UnionType} and len(parts) == 1 else kind
