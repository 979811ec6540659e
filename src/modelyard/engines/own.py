"""What the adapters of our own servers in Python share: what they lack, how they are started, what they work
on, why they ended.

Pure. The servers are `modelyard.servers.NAME`; each takes its parameters as one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.core.types import Cause, Placement
from modelyard.engines.adapter import Adapter
from modelyard.engines.base import Call, Command, Profile, Work

_STATS = Call("GET", "/stats")


class OwnServer(Adapter):
    """Its server tells at `/stats` of its work, as one JSON object."""

    def busy(self) -> Call | None:
        return _STATS

    def count_busy(self, body: bytes) -> int:
        count = _stats(body).get("processing")
        if not isinstance(count, int):
            raise ValueError("/stats: does not tell how many requests are processed")
        return count

    def work(self) -> Call | None:
        return _STATS

    def read_work(self, body: bytes) -> Work:
        found = _stats(body)
        drafted = found.get("drafted")
        accepted = found.get("accepted", 0) / drafted if drafted else None
        return Work(found.get("batch", found.get("processing")), found.get("kv_use"), accepted)


def _stats(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    return found if isinstance(found, dict) else {}


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
