"""The files of a small model as its makers publish them: two files of weights, and all that lies beside."""

from __future__ import annotations

import json
import struct
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
    "id2label": {str(number): "label" for number in range(1000)},
}
ELEMENTS = 20_000  # of each file of weights
WEIGHTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def weights(name: str, elements: int = ELEMENTS, dtype: str = "BF16") -> bytes:
    """A safetensors file with one tensor of two bytes an element."""
    header = json.dumps({name: {"dtype": dtype, "shape": [elements], "data_offsets": [0, 2 * elements]}})
    data = bytes((number * 7 + len(name)) % 256 for number in range(2 * elements))
    return struct.pack("<Q", len(header)) + header.encode() + data


NEEDED = {
    "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
    "chat_template.jinja": b"{{ messages }}",
    "config.json": json.dumps(CONFIG).encode(),
    "empty.txt": b"",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": WEIGHTS[0], "bb": WEIGHTS[1]}}).encode(),
    "tokenizer.json": b'{"version": "1.0"}',
    WEIGHTS[0]: weights("a"),
    WEIGHTS[1]: weights("bb"),
}
OTHERS = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "README.md": b"---\nlicense: mit\n---",
    "consolidated.safetensors": weights("again"),
    "modeling.py": b"print('code')",
    "onnx/config.json": b"{}",
    "original/model.safetensors": weights("original"),
    "pytorch_model.bin": b"PK\x03\x04 pickled",
    "tiny-Q4.gguf": b"GGUF",
}


def lay(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write these files (default: all) into a folder."""
    for name, content in (NEEDED | OTHERS if files is None else files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
