"""What an instance of the Transformers server takes: weights, KV cache, computation, constants.

Pure; from what a folder's files tell (`engines.base.ModelFile`). The first estimate only: what was observed
replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.core.types import Need, Share
from modelyard.engines.base import Files
from modelyard.engines.folder import WIDTHS, Folder

DEFAULT_CONTEXT = 4096
PROCESS = 450_000_000
"""An interpreter with torch and Transformers."""
CUDA_HOST = 900_000_000
"""What CUDA adds to that in host RAM."""
CUDA_CONTEXT = 600_000_000
"""What a CUDA context with torch's kernels and workspaces holds on the GPU."""
_PAGE = 256  # tokens
_SPARE_PAGES = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters that decide memory. `element` is the bytes of a number that is computed with, `stored`
    of one of the weights; `dtype` is their type as safetensors name it, empty where only the load tells;
    `batch` tokens are computed at once."""

    context: int
    slots: int
    batch: int
    element: int
    stored: float
    generates: bool
    on_ram: bool
    dtype: str = ""


class Model(Folder):
    """A folder as the server loads it."""

    def weights(self, plan: Plan) -> int:
        """All of them, as they are held."""
        known = {name: count for name, count in self.dtypes.items() if name in WIDTHS}
        if not known:
            return self.size
        rest = max(self.size - sum(WIDTHS[name] * count for name, count in known.items()), 0)
        return int(sum(known.values()) * plan.stored) + rest

    def converted(self, plan: Plan) -> int:
        """Those that are held in another type than their files'."""
        if not self.dtypes:
            return self.weights(plan)
        return int(sum(count for name, count in self.dtypes.items() if name != plan.dtype) * plan.stored)

    def cache(self, plan: Plan) -> int:
        """Its KV cache: whole pages for each slot."""
        if not plan.generates:
            return 0
        tokens = _PAGE * (-(-plan.context // _PAGE) * plan.slots + _SPARE_PAGES)
        return tokens * self.layers * 2 * self.head * self.heads * plan.element

    def computation(self, plan: Plan) -> int:
        """The buffers of one step."""
        width = 3 * self.whole("intermediate_size") + 6 * self.whole("hidden_size")
        logits = 3 * 4 * self.whole("vocab_size") * plan.slots if plan.generates else 0
        return plan.batch * width * plan.element + logits


def need(plan: Plan, files: Files) -> Need:
    """The shares of one instance. Unknown where the model's config does not tell what it takes."""
    models = [Model(file) for file in files.values()]
    weights, cache = (sum(of(model, plan) for model in models) for of in (Model.weights, Model.cache))
    own = weights + cache + Model(files["model"]).computation(plan)
    known = bool(Model(files["model"]).whole("hidden_size")) and (cache > 0 or not plan.generates)
    if plan.on_ram:
        return Need((Share("ram", PROCESS + own),), known=known)
    return Need((Share("ram", PROCESS + CUDA_HOST), Share("accelerator", own + CUDA_CONTEXT)), known=known)


def need_of_translation(plan: Plan, files: Files, computed: int) -> Need:
    """Of a model that translates; `computed` is what its batches take."""
    model = Model(files["model"])
    own, known = model.weights(plan) + computed, bool(model.whole("d_model"))
    if plan.on_ram:
        return Need((Share("ram", PROCESS + own, later=computed),), known=known)
    on_gpu = Share("accelerator", own + CUDA_CONTEXT, later=computed)
    return Need((Share("ram", PROCESS + CUDA_HOST), on_gpu), known=known)


def asleep(plan: Plan, files: Files) -> tuple[Share, ...]:
    """What stays while its weights lie in a file, or in host RAM for a GPU."""
    if plan.on_ram:
        return (Share("ram", PROCESS),)
    weights = Model(files["model"]).weights(plan)
    return Share("ram", PROCESS + CUDA_HOST + weights), Share("accelerator", CUDA_CONTEXT)
