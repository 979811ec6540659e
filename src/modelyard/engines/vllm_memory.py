"""What a vLLM instance takes: weights, KV cache, and what its processes hold beside them.

Pure; from what a folder's files tell (`engines.base.ModelFile`). vLLM is told the size of its cache in
bytes, so the cache takes what is said here; the rest is an estimate, for as long as nobody measured it.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.core.types import Need, Parallel, Share
from modelyard.engines.base import Files, ModelFile
from modelyard.engines.folder import WIDTHS, Folder

MIB = 1 << 20
DEFAULT_CONTEXT = 4096
PROCESS = 640_000_000
"""One of its processes: an interpreter with torch. There is an API server, an engine core, and one of its
own for each part of the model; on one GPU the engine core is that."""
CUDA_CONTEXT = 600_000_000
"""What a CUDA context with the kernels and workspaces of torch holds on each GPU."""
CUDA_GRAPHS = 500_000_000
"""The graphs that are recorded for small batches, unless `enforce_eager` says no."""
_BATCH = 2048
"""Tokens of one step that are computed together, where `batch` does not say."""
_SEEING_BATCH = 8192
"""The same of a model that also sees or hears: for some, all of an image has to be in one step."""
_BLOCK = 128  # tokens: the largest of vLLM's usual sizes
_BYTES = {"float32": 4, "float": 4}


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters that decide memory. `element` is the bytes of a number that is computed with,
    `kv_element` of one in the cache, of which there are `kv_cache` bytes on each device, or as the slots
    need where that is 0."""

    context: int
    slots: int
    parallel: Parallel
    on_ram: bool
    batch: int
    element: int
    kv_element: int
    kv_cache: int
    eager: bool


class Model(Folder):
    """A folder as vLLM loads it."""

    def __init__(self, file: ModelFile) -> None:
        super().__init__(file)
        self._encoder = self.config.get("is_encoder_decoder") is True

    def weights(self, plan: Plan) -> int:
        """All of them, in the type that is computed with."""
        more = (plan.element - width for width in WIDTHS.values())
        return self.size + sum(n * self.dtypes.get(name, 0) for name, n in zip(WIDTHS, more, strict=True))

    def batch(self, context: int, most: int, *, pooling: bool) -> int:
        """The tokens of one step, where nobody says how many, for `most` requests. A prompt that cannot be
        computed in parts has to fit; more than all requests can have is of no use, and some models fail."""
        whole = context if pooling or self._encoder else 0
        tokens = max(_SEEING_BATCH if self.has_inner else _BATCH, whole, most)
        return min(tokens, most * context)

    def cache(self, plan: Plan) -> int:
        """Its KV cache on each device: whole blocks for the context of each slot, and one that stays empty.
        Layers with a window count as if they had none, for vLLM may give them as much."""
        layers = -(-self.layers // plan.parallel.pipeline)
        if latent := self.whole("kv_lora_rank"):  # one vector for keys and values, whole on each device
            width = latent + self.whole("qk_rope_head_dim")
        else:
            width = 2 * self.head * -(-self.heads // plan.parallel.tensor)
        blocks = 1 + plan.slots * -(-plan.context // _BLOCK)
        return blocks * _BLOCK * layers * width * plan.kv_element

    def computation(self, plan: Plan) -> int:
        """What one step holds beside weights and cache, on each device."""
        width = 2 * self.whole("intermediate_size") + 4 * self.whole("hidden_size")
        logits = 2 * 4 * self.whole("vocab_size") * plan.slots
        return plan.batch * width * plan.element + logits


def need(plan: Plan, files: Files) -> Need:
    """The shares of one instance: on the CPU all in host RAM; else its processes there, and an equal part on
    each accelerator. Unknown where the model's config does not tell what its cache takes."""
    parts, cache = plan.parallel.devices, kv_cache(plan, files)
    weights, computation = _weights(plan, files), Model(files["model"]).computation(plan)
    if plan.on_ram:
        return Need((Share("ram", 3 * PROCESS + weights + cache + computation),), known=cache > 0)
    host, *devices = asleep(plan, files, keeps_weights=False)
    more = -(-weights // parts) + cache + computation
    return Need((host, *(Share(each.on, each.bytes + more) for each in devices)), known=cache > 0)


def asleep(plan: Plan, files: Files, *, keeps_weights: bool) -> tuple[Share, ...]:
    """What one instance on accelerators holds while it sleeps, with its weights in host RAM or nowhere."""
    parts = plan.parallel.devices
    host = PROCESS * (2 + (parts if parts > 1 else 0)) + (_weights(plan, files) if keeps_weights else 0)
    device = CUDA_CONTEXT + (0 if plan.eager else CUDA_GRAPHS)
    return (Share("ram", host), *(Share("accelerator", device),) * parts)


def _weights(plan: Plan, files: Files) -> int:
    return sum(Model(file).weights(plan) for file in files.values())


def kv_cache(plan: Plan, files: Files) -> int:
    """Bytes of the KV cache on each device, 0 where nobody knows."""
    own = (Model(files[role]).cache(plan) for role in ("model", "draft") if role in files)
    return plan.kv_cache or sum(own)


def element(dtype: str) -> int:
    """Bytes of a number of this type; `auto` computes what has 32 bits in 16."""
    return _BYTES.get(dtype, 2)
