"""What most engine adapters say of themselves; a class that inherits it says the rest of `base.Engine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from modelyard.core.languages import Pairs
from modelyard.core.types import Cause, Spec
from modelyard.engines.base import Call, Exit, Files, Listening, Profile, Rung, Work


class Adapter:
    programs: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()
    verified: ClassVar[Literal["real", "golden"]] = "golden"
    presets: ClassVar[frozenset[str]] = frozenset()
    spec_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    unix: ClassVar[bool] = False
    health: ClassVar[str] = "/health"
    chat_fields: ClassVar[frozenset[str]] = frozenset()
    trusted: ClassVar[frozenset[str]] = frozenset()
    folders: ClassVar[bool] = True
    parallel: ClassVar[frozenset[str]] = frozenset()
    dead: ClassVar[bytes] = b""
    causes: ClassVar[tuple[tuple[str, Cause], ...]] = ()
    """What its log says before an end, the most telling first."""

    def missing(self, profile: Profile) -> str:
        return ""

    def sources(self, spec: Spec) -> Mapping[str, str]:
        return {"model": spec.source} if spec.source else {}

    def rungs(self, spec: Spec, files: Files) -> Sequence[Rung]:
        return ()

    def context(self, spec: Spec, files: Files) -> int | None:
        context = spec.parameters.get("context")
        return context if isinstance(context, int) and context > 0 else None

    def elsewhere(self, spec: Spec) -> bool:
        return False

    def pairs(self, spec: Spec, files: Files) -> Pairs:
        return spec.pairs

    def languages(self, spec: Spec) -> Call | None:
        return None

    def read_languages(self, body: bytes) -> Pairs:
        raise ValueError("it does not tell")

    def translation(self, spec: Spec, fields: Mapping[str, object]) -> Mapping[str, object]:
        return fields

    def conversion(self, spec: Spec) -> str:
        return ""

    def usual_slots(self, parameters: Mapping[str, object]) -> int:
        return 1

    def suited(self, spec: Spec, files: Files) -> Mapping[str, object]:
        return {}

    def listening(self, spec: Spec) -> Listening:
        return Listening(self.unix, self.health)

    def model_name(self, spec: Spec) -> str | None:
        return None  # it is started with the public name

    def busy(self) -> Call | None:
        return None

    def count_busy(self, body: bytes) -> int:
        raise ValueError("it cannot tell")

    def work(self) -> Call | None:
        return None

    def read_work(self, body: bytes) -> Work:
        return Work()

    def cause(self, exit: Exit, log_tail: str) -> Cause:
        said = next((cause for text, cause in self.causes if text in log_tail), None)
        if exit.signal is not None:
            if said is Cause.OUT_OF_MEMORY:
                return said
            return Cause.KILLED if exit.signal in (9, 15) else Cause.CRASHED
        return (said or Cause.CRASHED) if exit.code else Cause.EXITED

    def telling(self, log_tail: str) -> str:
        return "\n".join(log_tail.split("\n")[-8:])

    def refused(self, spec: Spec, status: int) -> tuple[Cause, str] | None:
        return None
