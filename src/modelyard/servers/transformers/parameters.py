"""What the process is told at its start: the JSON object on its command line. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.servers.process import told

DTYPES = ("auto", "bfloat16", "float16", "float32")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
QUANTIZATIONS = ("bnb-4bit", "bnb-8bit", "torchao-int8", "torchao-int4", "fp8")
POOLINGS = ("mean", "cls", "last")


@dataclass(frozen=True)
class Parameters:
    """`address` is `unix:/path` or `host:port`, `path` the model's folder, `context` the tokens of one
    request with its answer. `device` is `cpu`, or `cuda` for the first one that is visible. At most
    `batch` are computed at once; of a model for `embedding` at most `batch_size` inputs (0: as many as that
    lets), the first of which waits `max_wait_ms` for others. Weights of host RAM lie in `sleep_folder` while
    it sleeps. Of a model for `translation`, what follows is as in `servers.translation.serving.Options`; 0 is
    its default there, and `batch` are its tokens."""

    address: str
    model: str
    path: str
    context: int
    slots: int = 1
    device: str = "cpu"
    dtype: str = "auto"
    attention: str = "sdpa"
    quantization: str = ""
    threads: int = 0
    batch: int = 512
    prefix_caching: bool = True
    embedding: bool = False
    batch_size: int = 0
    pooling: str = ""
    draft: str = ""
    draft_tokens: int = 0
    ngram: int = 0
    sleep_folder: str = ""
    translation: bool = False
    beam_size: int = 0
    max_wait_ms: int = 0
    max_output: int = 0
    token_bytes: int = 0

    @property
    def speculates(self) -> bool:
        return bool(self.draft or self.ngram)


def parse(argv: list[str]) -> Parameters:
    """Raises ValueError that names what is wrong, and TypeError for what is missing."""
    return told(argv, Parameters)
