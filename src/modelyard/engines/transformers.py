"""The adapter of the Transformers library, through our own server over it (`servers.transformers`).

The server is run by this interpreter, or by the profile's `program`: a Python with `modelyard[transformers]`.
It takes a folder of safetensors. A spec's parameters are the rows of `OPTIONS`; `context` is what each slot
gets (0: what the model was made for; as a rule, 4,096 tokens of that). With `translation` it is a model of
the M2M100, NLLB or Marian family, the requests of all slots go through it together, and `batch` are the
tokens of their sentences. `dtype: auto` computes with 32 bits on the CPU, on a GPU with the 16 that the model
was made for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from modelyard.core.languages import Pairs
from modelyard.core.types import Address, Cause, Need, Placement, Spec
from modelyard.engines import openai_http, own, seq2seq, transformers_memory, translating
from modelyard.engines.base import TRANSLATE, Call, Command, Files, Profile, Rung
from modelyard.engines.folder import Folder
from modelyard.engines.openai_http import CHAT
from modelyard.engines.options import Option, Table, one_of, text, truth, whole, whole_of
from modelyard.engines.transformers_memory import DEFAULT_CONTEXT, Model, Plan
from modelyard.servers.transformers import parameters
from modelyard.servers.translation.backends import BATCH_TOKENS, BEAM_SIZE

_BATCH = 512
_WRITES = 100e6  # bytes a second that a disk takes at least
OPTIONS = (
    Option("context", whole(0)),
    Option("dtype", one_of(*parameters.DTYPES)),
    Option("attention", one_of(*parameters.ATTENTIONS)),
    Option("quantization", one_of(*parameters.QUANTIZATIONS)),
    Option("threads", whole(1)),
    Option("batch", whole(16)),
    Option("batch_size", whole(1)),
    Option("max_wait_ms", whole(1)),
    Option("prefix_caching", truth),
    Option("embedding", truth),
    Option("pooling", one_of(*parameters.POOLINGS)),
    Option("draft.source", text),
    Option("draft.max", whole(1)),
    Option("ngram", whole(1)),
    Option("translation", truth),
    Option("beam_size", whole(1)),
    Option("max_output", whole(1)),
)
_OF_TRANSLATION = frozenset(
    {"translation", "dtype", "threads", "batch", "beam_size", "max_output", "max_wait_ms"}
)
_OF_EMBEDDING = frozenset({"batch_size", "max_wait_ms"})
_STEPS = (
    "is of models that embed (`embedding: true`): a generation joins the batch at its next step, waits for "
    "nobody, and `slots` says how many there are"
)
_TABLE = Table("transformers", OPTIONS)
_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_STORED = {"bnb-4bit": 0.55, "torchao-int4": 0.55, "bnb-8bit": 1.0, "torchao-int8": 1.0, "fp8": 1.0}


class TransformersEngine(own.OwnServer):
    """See the module's text and `engines.base.Engine`."""

    type: ClassVar[str] = "transformers"
    modules: ClassVar[tuple[str, ...]] = ("torch", "transformers", "jinja2")
    spec_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "batching.max_size": ("batch_size",),
        "batching.max_tokens": ("batch",),
        "batching.max_wait_ms": ("max_wait_ms",),
        "speculative.draft": ("draft.source",),
        "speculative.tokens": ("draft.max",),
    }
    verified: ClassVar[Literal["real", "golden"]] = "real"
    causes: ClassVar[tuple[tuple[str, Cause], ...]] = own.causes(
        "transformers", memory=("can't allocate memory",), arguments=("no GPU is visible",)
    )
    unix: ClassVar[bool] = True
    chat_fields: ClassVar[frozenset[str]] = frozenset({"top_k", "ignore_eos", "chat_template_kwargs"})

    def missing(self, profile: Profile) -> str:
        return own.missing(self.modules, profile, "transformers")

    def problems(self, spec: Spec, profile: Profile) -> list[tuple[str, str]]:
        found = _TABLE.problems(spec.parameters)
        options = _flat(spec)
        if not spec.source:
            found.append(("source", "is missing: name a folder of safetensors, e.g. hf://ORG/REPO"))
        if "draft.max" in options and "draft.source" not in options:
            found.append(("parameters.draft.source", "is missing: name the draft model's folder"))
        if "ngram" in options and "draft.source" in options:
            found.append(("parameters.ngram", "excludes draft: speculation has one source"))
        if "pooling" in options and options.get("embedding") is False:
            found.append(("parameters.pooling", "is of models that embed"))
        if spec.on_ram and str(options.get("attention", "")).startswith("flash"):
            found.append(("parameters.attention", "needs a GPU: leave it out, or take sdpa or eager"))
        if _translates(spec):
            others = options.keys() - _OF_TRANSLATION
            found += [(f"parameters.{name}", "is not of models that translate") for name in sorted(others)]
            return found + translating.warm_up_problems(spec)
        if not options.get("embedding"):
            found += [(f"parameters.{name}", _STEPS) for name in sorted(options.keys() & _OF_EMBEDDING)]
        own = options.keys() & {"beam_size", "max_output"}
        found += [(f"parameters.{name}", "is of models that translate") for name in sorted(own)]
        return found + openai_http.warm_up_problems(spec, self.paths(spec))

    def sources(self, spec: Spec) -> Mapping[str, str]:
        roles = {"model": spec.source, "draft": _flat(spec).get("draft.source")}
        return {role: str(source) for role, source in roles.items() if source}

    def need(self, spec: Spec, files: Files) -> Need:
        if _translates(spec):
            computed = _batch_tokens(spec) * _token_bytes(spec, files)
            return transformers_memory.need_of_translation(_plan(spec, files), files, computed)
        return transformers_memory.need(_plan(spec, files), files)

    def command(
        self, spec: Spec, profile: Profile, placement: Placement, address: Address, files: Files
    ) -> Command:
        options = _flat(spec)
        told = {name: value for name, value in options.items() if not name.startswith("draft.")}
        told |= {
            "address": str(address),
            "model": spec.model,
            "path": str(files["model"].path),
            "context": _context(spec, files),
            "slots": spec.slots,
            "device": own.device(placement),
            "sleep_folder": ".",
        }
        if _translates(spec):
            told |= {"batch": _batch_tokens(spec), "token_bytes": _token_bytes(spec, files)}
        if "draft" in files:
            told["draft"] = str(files["draft"].path)
            told["draft_tokens"] = options.get("draft.max", 0)
        return own.command("transformers", profile, told)

    def warm_up(self, spec: Spec) -> Sequence[Call]:
        if _translates(spec):
            return translating.warm_up(spec)
        # Not every model chats, but all that generate complete.
        return openai_http.warm_up(spec, self.paths(spec) - {CHAT})

    def rungs(self, spec: Spec, files: Files) -> Sequence[Rung]:
        options, plan = _flat(spec), _plan(spec, files)
        quantized = "quantization" in options or Model(files["model"]).quantized
        if quantized or "draft.source" in options or _translates(spec):
            return ()
        shares = transformers_memory.asleep(plan, files)
        name = "file" if plan.on_ram else "ram"
        first = Model(files["model"]).converted(plan) / _WRITES if plan.on_ram else 0.0
        return (Rung(name, shares, (Call("POST", "/sleep"),), (Call("POST", "/wake"),), first),)

    def paths(self, spec: Spec) -> frozenset[str]:
        if _translates(spec):
            return frozenset({TRANSLATE})
        common = {"/tokenize", "/detokenize"}
        own = {"/v1/embeddings"} if spec.parameters.get("embedding") else {CHAT, "/v1/completions"}
        return frozenset(common | own)

    def context(self, spec: Spec, files: Files) -> int | None:
        return _context(spec, files) if "model" in files else super().context(spec, files)

    def suited(self, spec: Spec, files: Files) -> Mapping[str, object]:
        if "model" not in files or {"embedding", "translation"} & spec.parameters.keys():
            return {}
        if seq2seq.translates(files["model"]):
            return {"translation": True}
        made_for = Model(files["model"]).architectures
        return {"embedding": True} if any(name.endswith("Model") for name in made_for) else {}

    def usual_slots(self, parameters: Mapping[str, object]) -> int:
        return seq2seq.SLOTS if parameters.get("translation") is True else 1

    def pairs(self, spec: Spec, files: Files) -> Pairs:
        return seq2seq.pairs(spec, files) if _translates(spec) else spec.pairs


def _flat(spec: Spec) -> dict[str, object]:
    return dict(_TABLE.walk(spec.parameters))


def _translates(spec: Spec) -> bool:
    return spec.parameters.get("translation") is True


def _batch_tokens(spec: Spec) -> int:
    return whole_of(spec.parameters, "batch", BATCH_TOKENS)


def _token_bytes(spec: Spec, files: Files) -> int:
    beams = whole_of(spec.parameters, "beam_size", BEAM_SIZE)
    return seq2seq.token_bytes(Folder(files["model"]), _plan(spec, files).element, beams)


def _context(spec: Spec, files: Files) -> int:
    given = spec.parameters.get("context")
    trained = Model(files["model"]).trained_context or DEFAULT_CONTEXT
    return (given or trained) if isinstance(given, int) else min(trained, DEFAULT_CONTEXT)


def _plan(spec: Spec, files: Files) -> Plan:
    options = _flat(spec)
    dtype = options.get("dtype", "auto")
    dtype = "float32" if dtype == "auto" and spec.on_ram else str(dtype)
    wide = dtype == "float32"
    return Plan(
        context=_context(spec, files),
        slots=spec.slots,
        batch=_batch(spec, files),
        element=4 if wide else 2,
        stored=_STORED.get(str(options.get("quantization")), 4 if wide else 2),
        generates=not options.get("embedding"),
        on_ram=spec.on_ram,
        dtype=_NAMES.get(dtype, ""),
    )


def _batch(spec: Spec, files: Files) -> int:
    """The most tokens that are computed at once: only continuous batching reads a prompt in parts."""
    options, context = _flat(spec), _context(spec, files)
    if "draft.source" in options or "ngram" in options:
        return context * spec.slots
    given = options.get("batch", _BATCH)
    batch = given if isinstance(given, int) else _BATCH
    return max(batch, context) if options.get("embedding") else batch
