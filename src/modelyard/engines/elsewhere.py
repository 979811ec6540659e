"""What adapters of servers elsewhere have in common: these are attached to, and take no memory here."""

from __future__ import annotations

from typing import ClassVar

from modelyard.core.types import Cause, Need, Share, Spec
from modelyard.engines.adapter import Adapter
from modelyard.engines.base import Exit, Files, Profile
from modelyard.engines.options import Table


class Elsewhere(Adapter):
    """Its parameters say where the server is (`url`), and may say what it wants to see (`key`) and how it is
    known (`ca`)."""

    # Where requests go, and what is read of this machine's disk.
    trusted: ClassVar[frozenset[str]] = frozenset({"url", "ca"})

    table: ClassVar[Table]

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        found = self.table.problems(spec.parameters)
        if "url" not in spec.parameters:
            found.append(("parameters.url", "is missing: say where the server is"))
        if spec.source:
            found.append(("source", "is of no use: the server has its models already"))
        return found

    def need(self, spec: Spec, files: Files) -> Need:
        return Need((Share("ram", 0),))

    def elsewhere(self, spec: Spec) -> bool:
        return True

    def cause(self, exit: Exit, log_tail: str) -> Cause:
        return Cause.EXITED

    def refused(self, spec: Spec, status: int) -> tuple[Cause, str] | None:
        if status in (401, 403):
            said = "is not taken" if "key" in spec.parameters else "is missing"
            return Cause.BAD_ARGUMENTS, f"parameters.key {said} by {spec.parameters['url']}"
        if 300 <= status < 400:
            return Cause.BAD_ARGUMENTS, "parameters.url leads elsewhere, and is not followed: name that place"
        if status == 429 or status >= 500:
            return Cause.LAUNCH, ""  # it may well take the next one
        return None
