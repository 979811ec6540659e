"""A model of the real shape of M2M100-418M that gives its text back: real computation, real lengths.

What is measured with random weights never ends by itself, or ends at once. Here all layers are random and
computed in full, but what they add is small; the last attention from decoder to encoder was set by hand. It
looks at the token in the same place (by the position's sine and cosine, in dimensions that no token uses) and
writes it, so that an output is its text, token by token, and ends where that ends.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

Array = NDArray[Any]
CONFIG = {
    "model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"], "d_model": 1024,
    "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
    "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "max_position_embeddings": 1024, "vocab_size": 128_112,
    "activation_function": "relu", "scale_embedding": True, "decoder_start_token_id": 2, "bos_token_id": 0,
    "pad_token_id": 1, "eos_token_id": 2, "dtype": "float16", "tie_word_embeddings": True,
}  # fmt: skip
SETTINGS = {"tokenizer_class": "M2M100Tokenizer", "language_codes": "m2m100", "num_madeup_words": 8}
WORDS = 600
_MARKS = 108  # of languages, and made-up words
_SMALL = 1e-4  # what the random layers add
_SHARP, _LOUD = 6.0, 8.0  # of the attention that was set by hand
_NOTHING = 511  # a dimension in which positions are nearly zero, and tokens are


def words(seed: int) -> list[str]:
    """Made-up words, each of two to four syllables."""
    random = np.random.default_rng(seed)
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    found = {"".join(random.choice(syllables, random.integers(2, 5))) for _ in range(2 * WORDS)}
    return sorted(found)[:WORDS]


def write(folder: Path, seed: int) -> None:
    """The model as Hugging Face has it, 0.97 GB of float16, into a folder that is there."""
    pieces = _pieces(folder / "sentencepiece.bpe.model", words(seed))
    size = int(CONFIG["vocab_size"])  # type: ignore[call-overload]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    vocabulary += [f"unused{number}" for number in range(size - _MARKS - len(vocabulary))]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    _save(folder / "model.safetensors", dict(_weights(size, np.random.default_rng(seed))))


def _pieces(path: Path, known: list[str]) -> list[str]:
    """A tokenizer that has each of these words as one token."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 4),
        model_writer=model, model_type="unigram", vocab_size=4 * len(known),
        user_defined_symbols=[f"▁{word}" for word in known], hard_vocab_limit=False, minloglevel=2,
        num_threads=1,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [trained.id_to_piece(number) for number in range(3, trained.get_piece_size())]


def _weights(size: int, random: np.random.Generator) -> Iterator[tuple[str, Array]]:
    width, inner = 1024, 4096

    def noise(*shape: int, scale: float = 0.02) -> Array:
        made = random.standard_normal(shape, np.float32)
        made *= scale
        return made.astype(np.float16)

    tokens = noise(size, width, scale=1 / 32)
    tokens[:, [*_places(), _NOTHING]] = 0
    tokens[1] = 0
    yield "model.shared.weight", tokens
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        for number in range(12):
            layer = f"model.{side}.layers.{number}"
            for attention in attentions:
                by_hand = (attention, number) == ("encoder_attn", 11)
                for part in ("q", "k", "v", "out"):
                    scale = _SMALL if part == "out" else 0.02
                    weight = _set(part) if by_hand else noise(width, width, scale=scale)
                    yield f"{layer}.{attention}.{part}_proj.weight", weight
                    yield f"{layer}.{attention}.{part}_proj.bias", np.zeros(width, np.float16)
                yield from _norm(f"{layer}.{attention}_layer_norm")
            yield f"{layer}.fc1.weight", noise(inner, width)
            yield f"{layer}.fc1.bias", np.zeros(inner, np.float16)
            yield f"{layer}.fc2.weight", noise(width, inner, scale=_SMALL)
            yield f"{layer}.fc2.bias", np.zeros(width, np.float16)
            yield from _norm(f"{layer}.final_layer_norm")
        yield from _norm(f"model.{side}.layer_norm")


def _norm(name: str) -> Iterator[tuple[str, Array]]:
    yield f"{name}.weight", np.ones(1024, np.float16)
    yield f"{name}.bias", np.zeros(1024, np.float16)


def _places() -> list[int]:
    """The dimensions of the 32 quickest waves of a position: sines, then cosines."""
    return [*range(32), *range(512, 544)]


def _set(part: str) -> Array:
    """A projection of the attention that looks at the same place: each head by the same waves, less what the
    normalization took from all dimensions alike."""
    if part in ("v", "out"):
        return np.eye(1024, dtype=np.float16) * np.float16(1 if part == "v" else _LOUD)
    weight = np.zeros((1024, 1024), np.float16)
    for row in range(1024):
        weight[row, _places()[row % 64]] = _SHARP
        weight[row, _NOTHING] = -_SHARP
    return weight


def _save(path: Path, tensors: dict[str, Array]) -> None:
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
