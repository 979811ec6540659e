"""What an instance of llama.cpp takes: weights, KV cache, computation, constants, per memory pool.

Called by the adapter `engines.llamacpp` with the facts of the GGUF files (`engines.gguf.facts`). Pure. The
first estimate only: what was observed replaces it.

The constants were fitted on resident memory (RssAnon + RssShmem) after a prompt that fills a batch, on
contexts from 1,024 to 8,192, one to four slots, f16 and q8_0 cache, with and without mmap, and hold there
within 2 %. That is the worst case of a running instance: after a prompt of one token it has touched about
15 MB less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelyard.core.types import Need, Share
from modelyard.engines.base import Files, ModelFile
from modelyard.engines.gguf import BYTES_PER_ELEMENT, trained_context

MIB = 1 << 20
DEFAULT_CONTEXT = 4096
PROCESS = 20_000_000
"""Interpreter, libraries, HTTP threads."""
PER_TOKEN_OF_VOCABULARY = 400
"""The tokenizer's tables: the text of each token, its merges, two maps of them."""
CUDA_CONTEXT = 450_000_000
"""What a CUDA context with its kernels and cuBLAS workspaces holds on each GPU, before any model."""
NGRAM_TABLE = 17_000_000
"""The hash table of n-gram speculation of kind `mod`."""
MMPROJ_FACTOR = 1.25
"""A projector's weights, and the computation buffer that comes with them."""
_PAD = 256

# Architectures whose header names a window but not the layers that have it: every n-th layer has none.
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "exaone4": 4}


@dataclass(frozen=True, slots=True)
class Split:
    """Bytes that go with the layers on accelerators, and bytes that stay in host RAM."""

    accelerator: float
    host: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters that decide memory. `gpu_layers` counts the output as one layer after the last;
    `devices` is the parts of the model per accelerator, empty for none; `on` is the device that a part may
    lie on, or `accelerator`."""

    context: int
    slots: int
    kv_k: str
    kv_v: str
    ubatch: int
    gpu_layers: int
    devices: tuple[float, ...]
    mmap: bool
    cache_ram: int
    checkpoints: int
    draft_gpu_layers: int
    ngram: str = ""
    on: str = "accelerator"


class Model:
    """One GGUF file as its header describes it. Missing facts fall back to the file's size and to zeros."""

    def __init__(self, file: ModelFile) -> None:
        self._facts = file.header
        self._architecture = str(file.header.get("general.architecture", ""))
        blocks = file.header.get("tensors.blocks")
        self.size = file.size
        self.digest = file.digest or str(file.path)
        self.embedding = self._whole("tensors.embedding")
        self.output = self._whole("tensors.output")
        if isinstance(blocks, Sequence) and blocks:
            self.blocks = [int(size) for size in blocks]
        else:
            count = self._value("block_count") or 1
            self.blocks = [file.size // count] * count
        self.vocabulary = self._whole("vocabulary") or self._value("vocab_size")
        self.trained_context = trained_context(file.header)
        self.pooling = self._value("pooling_type")

    def weights(self, gpu_layers: int) -> Split:
        """Where the weights go. The last layers leave the host first; the token table never does."""
        on_gpu = self._offloaded(gpu_layers)
        moved = float(sum(self.blocks[len(self.blocks) - on_gpu :]))
        host = float(self.embedding + sum(self.blocks) + self.output) - moved
        if gpu_layers > len(self.blocks):
            # A model without an output matrix of its own multiplies with a copy of the token table.
            tied = self.output < self.embedding
            moved += self.output + (self.embedding if tied else 0)
            host -= self.output
        return Split(moved, host)

    def cache(self, plan: Plan, gpu_layers: int) -> Split:
        """The KV cache of all slots, with a sliding window where the header has one."""
        per_layer = [self._layer_cache(number, plan) for number in range(len(self.blocks))]
        on_gpu = self._offloaded(gpu_layers)
        moved = sum(per_layer[len(per_layer) - on_gpu :])
        return Split(moved, sum(per_layer) - moved)

    def checkpoints(self, plan: Plan) -> float:
        """The saved states of sliding-window layers, which llama.cpp keeps in host RAM per slot."""
        windowed = [n for n in range(len(self.blocks)) if self._window(n)]
        return plan.checkpoints * sum(self._layer_cache(number, plan) for number in windowed)

    def computation(self, plan: Plan, accelerator: bool) -> float:
        """The buffers of one batch. An accelerator really holds the logits of all its tokens; in host RAM
        that part is reserved but never touched."""
        width = 3 * self._most("feed_forward_length") + 5 * self._value("embedding_length")
        return 4.0 * plan.ubatch * (width + (self.vocabulary if accelerator else 0))

    def _layer_cache(self, layer: int, plan: Plan) -> float:
        heads = self._per_layer("attention.head_count_kv", layer) or (
            0 if self._has("attention.head_count_kv") else self._per_layer("attention.head_count", layer)
        )
        width = self._value("embedding_length") // max(self._per_layer("attention.head_count", layer), 1)
        key = self._value("attention.key_length") or width
        # Latent attention keeps one compressed vector per token, from which keys and values both come.
        latent = self._has("attention.key_length_mla")
        value = 0 if latent else self._value("attention.value_length") or width
        cells = _padded(plan.context)
        window = self._window(layer)
        if window:
            cells = min(cells, _padded(window + plan.ubatch))
        per_cell = heads * (key * BYTES_PER_ELEMENT[plan.kv_k] + value * BYTES_PER_ELEMENT[plan.kv_v])
        return cells * plan.slots * per_cell

    def _window(self, layer: int) -> int:
        window = self._value("attention.sliding_window")
        pattern = self._facts.get(f"{self._architecture}.attention.sliding_window_pattern")
        if isinstance(pattern, Sequence) and not isinstance(pattern, str):
            return window if layer < len(pattern) and pattern[layer] else 0
        every = pattern if isinstance(pattern, int) else _FULL_EVERY.get(self._architecture, 0)
        return window if every and (layer + 1) % every else 0

    def _offloaded(self, gpu_layers: int) -> int:
        return min(gpu_layers, len(self.blocks))

    def _has(self, name: str) -> bool:
        return f"{self._architecture}.{name}" in self._facts

    def _value(self, name: str) -> int:
        return self._whole(f"{self._architecture}.{name}")

    def _whole(self, name: str) -> int:
        value = self._facts.get(name)
        return value if isinstance(value, int) else 0

    def _per_layer(self, name: str, layer: int) -> int:
        values = self._facts.get(f"{self._architecture}.{name}")
        if isinstance(values, Sequence) and not isinstance(values, str):
            return int(values[layer]) if layer < len(values) else 0
        return self._value(name)

    def _most(self, name: str) -> int:
        return max((self._per_layer(name, layer) for layer in range(len(self.blocks))), default=0)


def need(plan: Plan, files: Files) -> Need:
    """The shares of one instance: host RAM, and one per accelerator. `files` has at least `model`."""
    model = Model(files["model"])
    weights, cache = model.weights(plan.gpu_layers), model.cache(plan, plan.gpu_layers)
    on_gpu = bool(plan.devices and plan.gpu_layers)
    host = PROCESS + PER_TOKEN_OF_VOCABULARY * model.vocabulary + cache.host + plan.cache_ram
    host += model.checkpoints(plan) + (NGRAM_TABLE if plan.ngram == "mod" else 0)
    host += 0 if on_gpu and plan.gpu_layers > len(model.blocks) else model.computation(plan, False)
    device = weights.accelerator + cache.accelerator
    first = float(sum(file.size for role, file in files.items() if role.startswith("lora")))
    if "mmproj" in files:
        first += files["mmproj"].size * MMPROJ_FACTOR
    mapped: dict[str, int] = {}
    if plan.mmap:
        mapped[model.digest] = int(weights.host)
    else:
        host += weights.host
    if "draft" in files:
        draft_host, draft_first = _draft(plan, Model(files["draft"]), mapped)
        host, first = host + draft_host, first + draft_first
    if not on_gpu:
        return Need((Share("ram", int(host + first), mapped),))
    total = sum(plan.devices)
    shares = [
        device * part / total + model.computation(plan, True) + CUDA_CONTEXT + (first if number == 0 else 0)
        for number, part in enumerate(plan.devices)
    ]
    return Need((Share("ram", int(host), mapped), *(Share(plan.on, int(size)) for size in shares)))


def _draft(plan: Plan, draft: Model, mapped: dict[str, int]) -> tuple[float, float]:
    """Host bytes and first-accelerator bytes of a draft model, which has its target's slots and contexts."""
    weights, cache = draft.weights(plan.draft_gpu_layers), draft.cache(plan, plan.draft_gpu_layers)
    host = cache.host + PER_TOKEN_OF_VOCABULARY * draft.vocabulary
    if plan.mmap:
        mapped[draft.digest] = int(weights.host)
    else:
        host += weights.host
    if not plan.draft_gpu_layers:
        return host + draft.computation(plan, False), 0.0
    return host, weights.accelerator + cache.accelerator + draft.computation(plan, True)


def _padded(cells: int) -> int:
    return -(-cells // _PAD) * _PAD
