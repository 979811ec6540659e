"""What an import has found: sections of a configuration, and remarks on what is not in them.

Filled by `llama_swap` and `ollama`; made into a text by `written`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# References to environment variables stand between these two while an import works on a text.
_OPEN, _CLOSE = "\ue000", "\ue001"
_REFERENCE = re.compile(f"{_OPEN}([A-Za-z_][A-Za-z0-9_]*){_CLOSE}")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._:/+-]+")
_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is not as it was. `path` is where it stands in what was imported, `model` the model here
    that it is about. What is `lost` is not supported yet; anything else is done in another way."""

    path: str
    message: str
    model: str = ""
    lost: bool = True


@dataclass(slots=True)
class Imported:
    """The result of one import. `found` counts the models that there were; `models` and `engines` hold
    sections by name, `defaults` policy, `keys` access keys. `preload` may name models that are not there."""

    source: str  # what it was made from, for people
    found: int = 0
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    preload: list[str] = field(default_factory=list)
    keys: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def lost(self) -> list[Remark]:
        """What is not supported yet."""
        return [remark for remark in self.remarks if remark.lost]

    def lose(self, path: str, message: str, model: str = "") -> None:
        """Remember what could not be taken over."""
        self.remarks.append(Remark(path, message, model))

    def note(self, path: str, message: str, model: str = "") -> None:
        """Remember what is done in another way, or need not be said here."""
        self.remarks.append(Remark(path, message, model, lost=False))

    def leave_out(self, model: str, path: str, message: str) -> None:
        """Take a model out again, with the reason."""
        self.models.pop(model, None)
        self.remarks = [remark for remark in self.remarks if remark.model != model]
        self.lose(path, f"this model is left out: {message}")

    def profile(self, program: str, environment: Mapping[str, str]) -> str:
        """The name of the engine profile with this program and environment; made when there is none."""
        if not program and not environment:
            return "llamacpp"
        section: dict[str, Any] = {"type": "llamacpp"}
        section |= {"program": program} if program else {}
        section |= {"environment": dict(environment)} if environment else {}
        for name, known in self.engines.items():
            if known == section:
                return name
        name = "llama-server" if not self.engines else f"llama-server-{len(self.engines) + 1}"
        self.engines[name] = section
        return name

    def name_for(self, wanted: str) -> str:
        """A name that a model or an alias can have here; empty when none can be made of it."""
        return _NOT_IN_A_NAME.sub("-", wanted).lstrip("._:/+-")[:_NAME_LENGTH]


def reference(variable: str) -> str:
    """A reference to an environment variable, to be filled when the configuration is loaded."""
    return f"{_OPEN}{variable}{_CLOSE}"


def references(text: str) -> list[str]:
    """The variables that a text refers to."""
    return _REFERENCE.findall(text)


def filled(text: str, environ: Mapping[str, str]) -> str:
    """The text with its references replaced by their values; an unset one by nothing."""
    return _REFERENCE.sub(lambda match: environ.get(match[1], ""), text)


def as_written(text: str) -> str:
    """The text with its references as a configuration has them: `${NAME}`."""
    return _REFERENCE.sub(r"${\1}", text)


def absolute(name: str, base: Path, environ: Mapping[str, str]) -> str:
    """A file name made absolute; relative ones count from `base`. References stay."""
    return name if filled(name, environ).startswith("/") else str(base / name)
