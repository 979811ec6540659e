"""What fields of the YAML text hold: names, texts, lists of them, languages; and a section as such.

Used by the modules that say which fields there are. Only the shape of a value is decided here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from modelyard.config.quantities import parse_digest
from modelyard.config.text import retype
from modelyard.core.languages import code_of, name_of, pair_of

# Every part between slashes holds a letter or a digit: `a/../b` would be another path to many a client.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._:+-]*(/[._:+-]*[A-Za-z0-9][A-Za-z0-9._:+-]*)*$"
LONGEST_NAME = 200


def is_name(text: str) -> bool:
    """Whether a text can name a model, an engine profile, a device or a key."""
    return len(text) <= LONGEST_NAME and re.fullmatch(NAME, text) is not None and not text.endswith("\n")


def _as_text(value: object) -> object:
    """Numbers in an environment section are text: `OMP_NUM_THREADS: 4`."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _without_nul(text: str) -> str:
    """No path, program or address holds one."""
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


def _pair(text: str) -> str:
    return text if text == "auto" else name_of(pair_of(text))


def as_list(value: object) -> object:
    """One text is a list of one."""
    return [value] if isinstance(value, str) else value


Text = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_without_nul)]
Name = Annotated[str, StringConstraints(pattern=NAME, max_length=LONGEST_NAME)]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
VariableValue = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$"), BeforeValidator(_as_text)]
Digest = Annotated[str, BeforeValidator(parse_digest)]
Names = Annotated[list[Name], BeforeValidator(as_list)]
Words = Annotated[list[Word], BeforeValidator(as_list)]
Texts = Annotated[list[Text], BeforeValidator(as_list)]
FreeForm = Annotated[dict[str, Any], BeforeValidator(retype)]
WarmTexts = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=262_144)]],
    BeforeValidator(as_list),
    Field(max_length=64),
]
QuantizedType = Annotated[
    str, StringConstraints(pattern=r"^[a-zA-Z][a-zA-Z0-9_]{0,31}$"), AfterValidator(str.lower)
]
Languages = Annotated[
    list[Annotated[str, AfterValidator(code_of)]], BeforeValidator(as_list), Field(max_length=1000)
]
PairNames = Annotated[
    list[Annotated[str, AfterValidator(_pair)]], BeforeValidator(as_list), Field(max_length=10_000)
]
PriorityName = Literal["low", "normal", "high"]


class Section(BaseModel):
    """A mapping whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: object) -> object:
        """A field or section that is named and left empty is as good as not named."""
        if value is None:
            return {}
        if isinstance(value, dict):
            return {name: item for name, item in value.items() if item is not None}
        return value
