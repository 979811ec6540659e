"""What the adapters of our own servers in Python share: what they lack, how they are started, why they ended.

Pure. The servers are `modelyard.servers.NAME`; each takes its parameters as one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from modelyard.core.types import Cause, Placement
from modelyard.engines.base import Command, Profile


def missing(modules: Sequence[str], profile: Profile, extra: str) -> str:
    """See `Engine.missing`. The packages come with this extra of ours."""
    absent = [module for module in modules if module not in profile.found]
    if profile.program or not absent:
        return ""
    return (
        f"is not installed: there is no Python package {' and no '.join(absent)}; run `pip install "
        f"'modelyard[{extra}]'`, or name as the `program` of a profile under `engines:` a Python that has it"
    )


def command(name: str, profile: Profile, told: Mapping[str, object]) -> Command:
    """See `Engine.command`. It runs in a folder of its own."""
    argv = (profile.program or sys.executable, "-m", f"modelyard.servers.{name}", json.dumps(told))
    return Command(argv, own_folder=True)


def device(placement: Placement) -> str:
    """What it is told to compute on."""
    return "cpu" if all(charge.device == "ram" for charge in placement) else "cuda"


def causes(
    extra: str, *, memory: Sequence[str] = (), arguments: Sequence[str] = ()
) -> tuple[tuple[str, Cause], ...]:
    """What the log says before the end, the most telling first, with what one server says besides when there
    is no memory, or its arguments are bad."""
    said = (
        (Cause.OUT_OF_MEMORY, ("out of memory", "Cannot allocate memory", "MemoryError", *memory)),
        (Cause.PORT_IN_USE, ("couldn't bind",)),
        (Cause.NOT_INSTALLED, ("No module named", f"modelyard[{extra}]")),
        (Cause.BAD_ARGUMENTS, ("error: invalid argument", *arguments)),
        (Cause.BAD_MODEL, ("failed to load model",)),
    )
    return tuple((text, cause) for cause, texts in said for text in texts)
