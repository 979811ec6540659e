"""The adapter of the fake engine, for tests, demos and trying out a configuration without any model.

A spec's parameters are the options of `servers.fake_script.Script`, except that `slots` is the spec's, and

- `memory` also takes `accelerator` (and `accelerator1`, `accelerator2` … for further ones): bytes on
  whatever device the placement gives; with `parallel`, `accelerator` is the sum of its equal parts;
- `asleep` likewise, bytes that it holds asleep: with some it offers to sleep;
- `declared` is what the estimate says when it shall differ from `memory`, what is really taken;
- `known: false` marks the estimate as unmeasured.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from modelyard.core.types import Address, Cause, Need, Placement, Share, Spec
from modelyard.engines.base import Call, Command, Exit, Files, Profile, Rung
from modelyard.engines.llama_http import LlamaHttp, warm_up, warm_up_problems
from modelyard.engines.openai_http import post
from modelyard.servers import fake_script

_ACCELERATOR = re.compile(r"accelerator\d*")
_OURS = ("asleep", "declared", "known", "memory", "slots")
_PATHS = {
    "chat": ("/v1/chat/completions",),
    "completions": ("/v1/completions",),
    "embeddings": ("/v1/embeddings",),
    "rerank": ("/v1/rerank",),
    "tokenize": ("/tokenize", "/detokenize"),
    "translate": ("/translate",),
}
_WARM_UPS: Mapping[str, Mapping[str, object]] = {
    "chat": {"messages": [{"role": "user", "content": "warm-up"}], "max_tokens": 1},
    "completions": {"prompt": "warm-up", "max_tokens": 1},
    "embeddings": {"input": "warm-up"},
    "rerank": {"query": "warm-up", "documents": ["warm-up"]},
    "tokenize": {"content": "warm-up"},
    "translate": {"q": ["warm-up"], "source": "en", "target": "fr"},
}
# What its log says before an exit, the most telling first.
_CAUSES = (
    ("out of memory", Cause.OUT_OF_MEMORY),
    ("couldn't bind", Cause.PORT_IN_USE),
    ("invalid argument", Cause.BAD_ARGUMENTS),
    ("error: --", Cause.BAD_ARGUMENTS),
    ("No module named", Cause.NOT_INSTALLED),
    ("failed to load model", Cause.BAD_MODEL),
)


class FakeEngine(LlamaHttp):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "fake"
    verified: ClassVar[Literal["real", "golden"]] = "real"
    parallel: ClassVar[frozenset[str]] = frozenset({"tensor", "pipeline"})
    chat_fields: ClassVar[frozenset[str]] = LlamaHttp.chat_fields | {"fake"}
    dead: ClassVar[bytes] = fake_script.DEAD.encode()

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        options = spec.parameters
        found = [
            (f"parameters.{path}", message)
            for path, message in fake_script.problems(
                {name: value for name, value in options.items() if name not in _OURS}
            )
        ]
        for name in ("memory", "asleep", "declared"):
            if name in options:
                found += fake_script.memory_problems(f"parameters.{name}", options[name])
            if spec.parallel.devices > 1 and {*_given(spec, name)} - {"accelerator", "ram"}:
                found.append((f"parameters.{name}", "takes accelerator and ram alone beside `parallel`"))
        if not isinstance(options.get("known", True), bool):
            found.append(("parameters.known", "must be true or false"))
        if "slots" in options:
            found.append(
                ("parameters.slots", "is a field of the model itself: write `slots` beside `engine`")
            )
        return found + ([] if found else warm_up_problems(spec, self.paths(spec)))

    def sources(self, spec: Spec) -> Mapping[str, str]:
        return {}

    def need(self, spec: Spec, files: Files) -> Need:
        shares = _shares(_memory(spec, "declared" if "declared" in spec.parameters else "memory"))
        return Need(shares or (Share("ram", 0),), known=spec.parameters.get("known") is not False)

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command:
        options = spec.parameters
        script = {name: value for name, value in options.items() if name not in _OURS}
        script["slots"] = spec.slots
        argv = [profile.program or sys.executable, "-m", "modelyard.servers.fake"]
        argv += [
            "--address",
            str(address),
            "--model",
            spec.model,
            "--script",
            json.dumps(script, default=list),
        ]
        for name in ("memory", "asleep"):
            for device, size in _placed(_memory(spec, name), placement).items():
                argv += [f"--{name}", f"{device}={size}"]
        return Command(tuple(argv))

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        api = next(name for name in _WARM_UPS if name in _apis(spec))
        first = post(_PATHS[api][0], {"model": spec.model, **_WARM_UPS[api], **_first_pair(spec, api)})
        return warm_up(spec, self.paths(spec), first)

    def rungs(self, spec: Spec, files: Files) -> Sequence[Rung]:
        asleep = _shares(_memory(spec, "asleep"))
        rung = Rung("asleep", asleep, (Call("POST", "/sleep"),), (Call("POST", "/wake"),))
        return (rung,) if asleep else ()

    def paths(self, spec: Spec) -> frozenset[str]:
        return frozenset(path for api in _apis(spec) for path in _PATHS[api])

    def cause(self, exit: Exit, log_tail: str) -> Cause:
        if exit.signal is not None:
            return Cause.KILLED if exit.signal == 9 else Cause.CRASHED
        if exit.code == 0:
            return Cause.EXITED
        return next((cause for text, cause in _CAUSES if text in log_tail), Cause.CRASHED)


def _apis(spec: Spec) -> tuple[str, ...]:
    given = spec.parameters.get("apis", fake_script.APIS)
    return tuple(given) if isinstance(given, list | tuple) and given else fake_script.APIS


def _first_pair(spec: Spec, api: str) -> dict[str, str]:
    """What a warm-up translates from and to, where the pairs are declared."""
    given = spec.parameters.get("pairs")
    if api != "translate" or not isinstance(given, list | tuple) or not given:
        return {}
    source, _, target = str(given[0]).partition("-")
    return {"source": source, "target": target}


def _given(spec: Spec, name: str) -> dict[str, int]:
    given = spec.parameters.get(name, {})
    return dict(given) if isinstance(given, Mapping) else {}


def _memory(spec: Spec, name: str) -> dict[str, int]:
    """Bytes by device, `accelerator` in as many parts as there are devices."""
    memory, parts = _given(spec, name), spec.parallel.devices
    if parts == 1 or "accelerator" not in memory:
        return memory
    each = -(-memory.pop("accelerator") // parts)
    return {**{f"accelerator{number or ''}": each for number in range(parts)}, **memory}


def _shares(memory: Mapping[str, int]) -> tuple[Share, ...]:
    return tuple(
        Share("accelerator" if _ACCELERATOR.fullmatch(device) else device, size)
        for device, size in memory.items()
    )


def _placed(memory: Mapping[str, int], placement: Placement) -> dict[str, int]:
    """What to take on which device: an accelerator stands for a placed device that nothing else names."""
    free = [charge.device for charge in placement if charge.device != "ram" and charge.device not in memory]
    devices = iter(free)
    placed: dict[str, int] = {}
    for device, size in memory.items():
        real = next(devices, device) if _ACCELERATOR.fullmatch(device) else device
        placed[real] = placed.get(real, 0) + size
    return placed
