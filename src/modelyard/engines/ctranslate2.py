"""The adapter of CTranslate2, through our own server over it (`servers.ctranslate2`): it translates.

The server is run by this interpreter, or by the profile's `program`: a Python with `modelyard[translation]`.
The model is a folder as Hugging Face has it, of the M2M100, NLLB or Marian family; the store converts it once
for each type. A spec's parameters are the rows of `OPTIONS`. `compute_type: auto` is int8 on the CPU, float16
on a GPU. Requests of all `slots` go through the model together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from modelyard.core.languages import Pairs
from modelyard.core.types import Address, Cause, Need, Placement, Share, Spec
from modelyard.engines import own, seq2seq, translating
from modelyard.engines.base import TRANSLATE, Call, Command, Files, Profile
from modelyard.engines.folder import Folder
from modelyard.engines.options import Option, Table, one_of, whole, whole_of
from modelyard.servers.ctranslate2.parameters import COMPUTE_TYPES
from modelyard.servers.translation.backends import BATCH_TOKENS, BEAM_SIZE, shared_cores

PROCESS = 30_000_000
"""An interpreter with CTranslate2, NumPy and SentencePiece."""
CUDA_HOST = 400_000_000
"""What CUDA adds to that in host RAM."""
CUDA_CONTEXT = 500_000_000
"""What a CUDA context with cuBLAS holds on the GPU."""
OPTIONS = (
    Option("compute_type", one_of(*COMPUTE_TYPES)),
    Option("replicas", whole(1)),
    Option("threads", whole(1)),
    Option("beam_size", whole(1)),
    Option("max_batch_tokens", whole(64)),
    Option("max_wait_ms", whole(0)),
    Option("max_output", whole(1)),
)
_TABLE = Table("ctranslate2", OPTIONS)
# What the store makes for each type: what it has no form for is turned at the load.
_STORED = {"int8_bfloat16": "int8", "bfloat16": "float32"}
_WIDTHS = {
    "int8": 1.03,
    "int8_float32": 1.03,
    "int8_float16": 1.02,
    "int16": 2.03,
    "float16": 2,
    "float32": 4,
}


class CTranslate2Engine(own.OwnServer):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "ctranslate2"
    modules: ClassVar[tuple[str, ...]] = ("ctranslate2", "sentencepiece", "numpy")
    verified: ClassVar[Literal["real", "golden"]] = "real"
    unix: ClassVar[bool] = True
    causes: ClassVar[tuple[tuple[str, Cause], ...]] = own.causes(
        "translation",
        memory=("std::bad_alloc", "failed to allocate memory", "cannot allocate memory"),
        arguments=("there is no device", "there is no type"),
    )
    spec_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "batching.max_tokens": ("max_batch_tokens",),
        "batching.max_wait_ms": ("max_wait_ms",),
    }

    def missing(self, profile: Profile) -> str:
        return own.missing(self.modules, profile, "translation")

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        found = _TABLE.problems(spec.parameters)
        if not spec.source:
            found.append(("source", "is missing: name a folder of safetensors, e.g. hf://ORG/REPO"))
        if spec.quantize:
            found.append(("quantize", "makes GGUF files: write `parameters: {compute_type: int8}` instead"))
        if spec.on_ram and "float16" in str(spec.parameters.get("compute_type")):
            found.append(("parameters.compute_type", "needs a GPU: take int8, int16 or float32"))
        return found + translating.warm_up_problems(spec)

    def usual_slots(self, parameters: Mapping[str, object]) -> int:
        return seq2seq.SLOTS

    def conversion(self, spec: Spec) -> str:
        return f"ctranslate2-{_stored(spec)}"

    def need(self, spec: Spec, files: Files) -> Need:
        folder = Folder(files["model"])
        weights = folder.size
        if files["model"].header.get("kind") != "ctranslate2":  # it is not made yet
            weights = int(sum(folder.dtypes.values()) * _WIDTHS[_stored(spec)]) or weights
        computed = _batch_tokens(spec) * _token_bytes(spec, folder) * _replicas(spec)
        known = bool(folder.whole("d_model"))
        if spec.on_ram:
            return Need((Share("ram", PROCESS + weights + computed, later=computed),), known=known)
        on_gpu = Share("accelerator", CUDA_CONTEXT + weights + computed, later=computed)
        return Need((Share("ram", PROCESS + CUDA_HOST), on_gpu), known=known)

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command:
        told = {
            **spec.parameters,
            "address": str(address),
            "model": spec.model,
            "path": str(files["model"].path),
            "device": own.device(placement),
            "token_bytes": _token_bytes(spec, Folder(files["model"])),
        }
        return own.command("ctranslate2", profile, told)

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        return translating.warm_up(spec)

    def paths(self, spec: Spec) -> frozenset[str]:
        return frozenset({TRANSLATE})

    def pairs(self, spec: Spec, files: Files) -> Pairs:
        return seq2seq.pairs(spec, files)


def _stored(spec: Spec) -> str:
    given = str(spec.parameters.get("compute_type", "auto"))
    chosen = ("int8" if spec.on_ram else "float16") if given == "auto" else given
    return _STORED.get(chosen, chosen)


def _replicas(spec: Spec) -> int:
    given = whole_of(spec.parameters, "replicas", 0)
    return shared_cores(given, whole_of(spec.parameters, "threads", 0))[0] if spec.on_ram else given or 1


def _batch_tokens(spec: Spec) -> int:
    return whole_of(spec.parameters, "max_batch_tokens", BATCH_TOKENS)


def _token_bytes(spec: Spec, folder: Folder) -> int:
    half = "float16" in _stored(spec)
    return seq2seq.token_bytes(folder, 2 if half else 4, whole_of(spec.parameters, "beam_size", BEAM_SIZE))
