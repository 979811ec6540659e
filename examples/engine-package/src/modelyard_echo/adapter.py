"""The adapter: what Modelyard asks of an engine. It only says what to do; it never does anything itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from modelyard.core.types import Address, Need, Placement, Share, Spec
from modelyard.engines import openai_http
from modelyard.engines.adapter import Adapter
from modelyard.engines.base import Call, Command, Files, Profile
from modelyard.engines.options import Option, Table, whole

SERVER = Path(__file__).with_name("server.py")  # its environment has no PYTHONPATH
PROCESS = 30_000_000  # bytes of an interpreter; what was measured replaces it from the second start on
PARAMETERS = Table("echo", [Option("times", whole(1))])


class EchoEngine(Adapter):
    """`Adapter` has what most engines say; `modelyard.engines.base.Engine` is the whole contract."""

    type: ClassVar[str] = "echo"
    unix: ClassVar[bool] = True
    verified: ClassVar[Literal["real", "golden"]] = "real"

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        return PARAMETERS.problems(spec.parameters)

    def need(self, spec: Spec, files: Files) -> Need:
        return Need((Share("ram", PROCESS),))

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command:
        program = profile.program or sys.executable
        times = str(spec.parameters.get("times", 1))
        return Command((program, str(SERVER), address.path, spec.model, times))

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        return openai_http.warm_up(spec, self.paths(spec))

    def paths(self, spec: Spec) -> frozenset[str]:
        return frozenset({"/v1/chat/completions"})
