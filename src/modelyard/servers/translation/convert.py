"""Makes a folder for CTranslate2 of one as Hugging Face has it: once, without PyTorch or Transformers.

    python -m modelyard.servers.translation.convert SOURCE TARGET [TYPE]

CTranslate2's own converter asks Transformers for the tokens, and the two disagree on those of M2M100; here
they come from the tokenizer's files, padded to as many as the weights have. What is made has the tokenizer's
files beside it, so that `families` reads both folders alike.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import BadFile, ModelyardError
from modelyard.servers.translation import families, sentencepieces, weights
from modelyard.servers.translation.families import TYPES
from modelyard.servers.translation.tokens import END, PAD, UNKNOWN, Tokenizer
from modelyard.servers.translation.weights import Array

_NEVER = -30000.0  # a score that no token is chosen at, in half precision too
_ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "swish": "SWISH", "silu": "SWISH", "gelu_new": "GELUTanh"}


def convert(source: Path, target: Path, type: str | None = None) -> None:
    """Write the folder `target`, which is there and empty. The weights stay of the type they have, or become
    one of TYPES. Takes memory for all of them. Raises BadFile, and OSError where they cannot be written."""
    tokenizer = Tokenizer(source)
    config = families.read_json(source / families.CONFIG)
    try:
        spec = _spec(tokenizer, config, weights.read(source))
        spec.validate()
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise BadFile(
            f"{source}: its weights are not those of its config.json ({error}); fetch it whole"
        ) from None
    spec.optimize(quantization=type)
    spec.save(str(target))
    for name in families.TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
        elif name == families.PIECES and tokenizer.family.name == "nllb":
            (target / name).write_bytes(sentencepieces.of_tokenizer(source))


def _spec(tokenizer: Tokenizer, config: Mapping[str, Any], found: Mapping[str, Array]) -> Any:
    from ctranslate2 import specs  # noqa: PLC0415 - it imports PyTorch where that is there

    marian = tokenizer.family.name == "marian"
    spec = specs.TransformerSpec.from_config(
        (config["encoder_layers"], config["decoder_layers"]),
        config["encoder_attention_heads"],
        pre_norm=not marian,
        activation=specs.Activation[_ACTIVATIONS[config["activation_function"]]],
    )
    source = _embeddings(found, "model.encoder.embed_tokens.weight")
    target = _embeddings(found, "model.decoder.embed_tokens.weight")
    spec.encoder.embeddings[0].weight, spec.decoder.embeddings.weight = source, target
    for side, name in ((spec.encoder, "encoder"), (spec.decoder, "decoder")):
        side.scale_embeddings = float(config["d_model"]) ** 0.5 if config.get("scale_embedding") else 1.0
        side.position_encodings.encodings = _positions(config, marian).astype(source.dtype)
        if not marian:
            _norm(side.layer_norm, found, f"model.{name}.layer_norm")
        for number, layer in enumerate(side.layer):
            _layer(layer, found, f"model.{name}.layers.{number}")
    output = found.get("lm_head.weight", target)
    spec.decoder.projection.weight = output
    read, written = tokenizer.vocabularies(len(source), len(output))
    spec.decoder.projection.bias = _bias(found, written, output.dtype)
    spec.register_source_vocabulary(read)
    spec.register_target_vocabulary(written)
    spec.config.eos_token, spec.config.unk_token = END, UNKNOWN
    spec.config.decoder_start_token = written[config["decoder_start_token_id"]]
    for key in ("model_type", "max_position_embeddings"):
        spec.config.add_attribute(key, config.get(key))
    return spec


def _embeddings(found: Mapping[str, Array], name: str) -> Array:
    return found[name] if name in found else found["model.shared.weight"]


def _bias(found: Mapping[str, Array], vocabulary: list[str], dtype: Any) -> Array:
    """What is added to the score of each token. Padding begins an output in some families, and is never a
    part of one."""
    bias = np.zeros(len(vocabulary), dtype)
    if "final_logits_bias" in found:
        bias += found["final_logits_bias"].reshape(-1).astype(dtype)
    bias[vocabulary.index(PAD)] = _NEVER
    return bias


def _layer(layer: Any, found: Mapping[str, Array], name: str) -> None:
    _attention(
        layer.self_attention, found, f"{name}.self_attn", [["q_proj", "k_proj", "v_proj"], ["out_proj"]]
    )
    if hasattr(layer, "attention"):
        _attention(
            layer.attention, found, f"{name}.encoder_attn", [["q_proj"], ["k_proj", "v_proj"], ["out_proj"]]
        )
    _linear(layer.ffn.linear_0, found, f"{name}.fc1")
    _linear(layer.ffn.linear_1, found, f"{name}.fc2")
    _norm(layer.ffn.layer_norm, found, f"{name}.final_layer_norm")


def _attention(spec: Any, found: Mapping[str, Array], name: str, parts: list[list[str]]) -> None:
    for linear, projections in zip(spec.linear, parts, strict=True):
        _linear(linear, found, *(f"{name}.{one}" for one in projections))
    _norm(spec.layer_norm, found, f"{name}_layer_norm")


def _linear(spec: Any, found: Mapping[str, Array], *names: str) -> None:
    """A projection, or several side by side."""
    spec.weight = np.concatenate([found[f"{name}.weight"] for name in names])
    spec.bias = np.concatenate([found[f"{name}.bias"] for name in names])


def _norm(spec: Any, found: Mapping[str, Array], name: str) -> None:
    spec.gamma, spec.beta = found[f"{name}.weight"], found[f"{name}.bias"]


def _positions(config: Mapping[str, Any], marian: bool) -> Array:
    """Sine and cosine of each position, half and half. M2M100 counts from two, and its frequencies reach the
    last one exactly."""
    half = -(-config["d_model"] // 2)
    first, steps = (0, half) if marian else (2, half - 1)
    frequencies = np.exp(np.arange(half) * -(np.log(10000.0) / steps))
    angles = np.outer(np.arange(first, first + config["max_position_embeddings"]), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, : config["d_model"]].astype(np.float32)


def main(argv: list[str]) -> int:
    if not 2 <= len(argv) <= 3 or not {*argv[2:]} <= {*TYPES}:
        print(f"usage: SOURCE TARGET [{'|'.join(TYPES)}]", file=sys.stderr)
        return 2
    try:
        convert(Path(argv[0]), Path(argv[1]), *argv[2:])
    except (ModelyardError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
