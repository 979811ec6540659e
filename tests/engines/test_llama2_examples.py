"""The examples with Llama 2: they can be run as they stand, and two cards of 24 GB hold both models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from modelyard.config import load
from modelyard.core.memory import DeviceLedger
from modelyard.core.placement import fit_together
from modelyard.core.types import Device, DeviceKind, Need, Spec
from modelyard.engines import registry
from modelyard.engines.base import ModelFile
from modelyard.store import Store

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["llama2:7b", "llama2:7b-instruct"]
GB = 10**9

# What the headers of the files say: four bits for a weight in Ollama's, sixteen in the publisher's.
Q4_0 = 3_825_807_040
GGUF: Mapping[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.context_length": 4096,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 11008,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 32,
    "tensors.blocks": [113_852_416] * 32,
    "tensors.embedding": 73_728_000,
    "tensors.output": 107_520_000,
    "vocabulary": 32000,
}
F16 = 13_476_839_424
FOLDER: Mapping[str, object] = {
    "kind": "safetensors",
    "bytes": F16,
    "parameters": F16 // 2,
    "dtypes": {"F16": F16 // 2},
    "config": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
}
FILES = {
    "ollama": ModelFile(Path("/c/m"), Q4_0, "m", GGUF),
    "vllm": ModelFile(Path("/c/m"), F16, "m", FOLDER),
}


def needs(name: str) -> list[tuple[Need, Spec]]:
    """What the two models of an example take; nothing is wrong with either."""
    config = load(EXAMPLES / f"llama2-{name}.yaml", environ={"HOME": "/home/ada"})
    assert [model.spec.model for model in config.models] == NAMES
    found = []
    for model in config.models:
        profile = config.profiles[model.spec.engine]
        assert profile.type == name
        engine = registry.load()[name]
        assert engine.problems(model.spec, profile) == []
        assert "/v1/chat/completions" in engine.paths(model.spec)
        assert engine.context(model.spec, {"model": FILES[name]}) == 4096
        found.append((engine.need(model.spec, {"model": FILES[name]}), model.spec))
    return found


def cards(count: int) -> dict[str, DeviceLedger]:
    devices = [Device(f"gpu{number}", DeviceKind.CUDA, 24 * GB, 23 * GB) for number in range(count)]
    ram = Device("ram", DeviceKind.RAM, 32 * GB, 28 * GB)
    return {device.id: DeviceLedger(device) for device in (ram, *devices)}


@pytest.mark.parametrize("name", ["ollama", "vllm"])
def test_two_cards_hold_both_models(name: str) -> None:
    assert fit_together(needs(name), cards(2))


def test_one_card_holds_both_where_a_weight_has_four_bits() -> None:
    assert fit_together(needs("ollama"), cards(1))
    assert not fit_together(needs("vllm"), cards(1))


@pytest.mark.parametrize("name", ["ollama", "vllm"])
def test_their_sources_are_such_as_the_store_knows(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert [store.problem(spec.source) for _, spec in needs(name)] == [None, None]
