"""Folders of small models with random weights, as Hugging Face has them: real architectures, real tokenizer
files, made on the spot without PyTorch. They translate into nonsense, always into the same."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from modelyard.servers.translation import families

_IDS = {"decoder_start_token_id": 2, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
Weights = dict[str, np.ndarray[Any, Any]]
D, FFN, LAYERS = 32, 64, 2
_WORDS = [
    "the",
    "a",
    "red",
    "green",
    "small",
    "old",
    "house",
    "tree",
    "dog",
    "cat",
    "is",
    "likes",
    "two",
    "rouge",
]


def corpus() -> list[str]:
    random = np.random.default_rng(1)
    lines = [" ".join(random.choice(_WORDS, 7)) + "." for _ in range(400)]
    return [*lines, "0123456789 !?,;:'\"-() abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ éèàüöäß"]


def m2m100(folder: Path, **config: object) -> Path:
    """The shape of facebook/m2m100_418M: 100 languages, and 8 tokens that nothing is."""
    folder.mkdir(parents=True)
    pieces = _pieces(folder / "sentencepiece.bpe.model", 140)
    _vocabulary(folder / "vocab.json", ["<s>", "<pad>", "</s>", "<unk>", *pieces])
    marks = [f"__{code}__" for code in families.M2M100_CODES]
    settings = {"tokenizer_class": "M2M100Tokenizer", "language_codes": "m2m100", "num_madeup_words": 8}
    _json(folder / "tokenizer_config.json", settings | {"additional_special_tokens": marks})
    _model(folder, "m2m_100", 4 + len(pieces) + 100 + 8, len(pieces), {**_IDS, **config})
    return folder


def nllb(folder: Path) -> Path:
    folder.mkdir(parents=True)
    pieces = _pieces(folder / "sentencepiece.bpe.model", 90, "bpe")
    settings = {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": families.NLLB_CODES}
    _json(folder / "tokenizer_config.json", settings)
    _model(
        folder,
        "m2m_100",
        4 + len(pieces) + 202 + 1 + 2,
        len(pieces),
        {"decoder_start_token_id": 2},
        tied=True,
    )
    return folder


def marian(folder: Path, source: str = "en", target: str = "fr", marks: Iterable[str] = ()) -> Path:
    folder.mkdir(parents=True)
    pieces = _pieces(folder / "source.spm", 140)
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    words = ["</s>", "<unk>", *pieces, *marks, "<pad>"]
    _vocabulary(folder / "vocab.json", words)
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": source, "target_lang": target}
    _json(folder / "tokenizer_config.json", settings)
    pad = len(words) - 1
    ids: dict[str, object] = {
        "decoder_start_token_id": pad,
        "pad_token_id": pad,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }
    more = {"activation_function": "swish", "bad_words_ids": [[pad]]}
    _model(folder, "marian", len(words), 2 + len(pieces), ids | more)
    return folder


def group(folder: Path) -> Path:
    """The shape of Helsinki-NLP/opus-mt-en-ROMANCE: a mark before the text says which language is meant."""
    return marian(folder, "en", "ROMANCE", [">>fr<<", ">>es<<", ">>it<<", ">>pt_BR<<"])


def as_ctranslate2_has_it(converted: Path, target: Path) -> Path:
    """A folder as CTranslate2's own converter makes it, with the files of the tokenizer that it copies."""
    shutil.copytree(converted, target)
    (target / "vocab.json").unlink(missing_ok=True)
    config = json.loads((converted / "config.json").read_text())
    ours = {"model_type", "max_position_embeddings"}
    _json(target / "config.json", {name: value for name, value in config.items() if name not in ours})
    return target


def with_tokenizer_json(folder: Path) -> Path:
    """Have a folder of NLLB's be as Transformers writes one now: without SentencePiece's own file."""
    path = folder / "sentencepiece.bpe.model"
    trained = sentencepiece.SentencePieceProcessor(model_file=str(path))
    words = [trained.id_to_piece(number) for number in range(3, trained.get_piece_size())]
    pairs = [(word[:at], word[at:]) for word in words for at in range(1, len(word))]
    merges = [pair for pair in pairs if {*pair} <= {*words}]
    first = ("<s>", "<pad>", "</s>", "<unk>")
    vocabulary = {word: number for number, word in enumerate((*first, *words))}
    marks = (*families.NLLB_CODES, "<mask>")
    added = [(word, number) for number, word in enumerate(first)]
    added += [(word, len(vocabulary) + number) for number, word in enumerate(marks)]
    found = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        "added_tokens": [{"content": word, "id": number} for word, number in added],
        "normalizer": None,
    }
    _json(folder / "tokenizer.json", found)
    path.unlink()
    return folder


def _pieces(path: Path, size: int, kind: str = "unigram") -> list[str]:
    """Train a tokenizer, and give its pieces without the special ones."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=size, model_type=kind,
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [trained.id_to_piece(number) for number in range(3, trained.get_piece_size())]


def _model(
    folder: Path, kind: str, vocabulary: int, words: int, config: Mapping[str, object], tied: bool = False
) -> None:
    sizes = {
        "d_model": D, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN,
        "max_position_embeddings": 128, "vocab_size": vocabulary, "scale_embedding": True,
        "activation_function": "relu", "tie_word_embeddings": tied,
    }  # fmt: skip
    name = "MarianMTModel" if kind == "marian" else "M2M100ForConditionalGeneration"
    _json(folder / "config.json", {"model_type": kind, "architectures": [name], **sizes, **config})
    save(folder / "model.safetensors", weights(kind, vocabulary, words, tied))


def weights(kind: str, vocabulary: int, words: int, tied: bool) -> Weights:
    random = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return (random.standard_normal(shape) * 0.5).astype(np.float32)

    found: Weights = {"model.shared.weight": normal(vocabulary, D) * 0.3}
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        norms = [] if kind == "marian" else [f"model.{side}.layer_norm"]
        for number in range(LAYERS):
            layer = f"model.{side}.layers.{number}"
            norms += [f"{layer}.{one}_layer_norm" for one in attentions] + [f"{layer}.final_layer_norm"]
            linears = {
                f"{layer}.{one}.{part}_proj": (D, D) for one in attentions for part in ("q", "k", "v", "out")
            }
            for name, shape in {**linears, f"{layer}.fc1": (FFN, D), f"{layer}.fc2": (D, FFN)}.items():
                found[f"{name}.weight"], found[f"{name}.bias"] = normal(*shape), normal(shape[0])
        for name in norms:
            found[f"{name}.weight"], found[f"{name}.bias"] = 1 + normal(D) * 0.1, normal(D) * 0.1
    if not tied:
        found["model.encoder.embed_tokens.weight"] = found["model.shared.weight"].copy()
        found["model.decoder.embed_tokens.weight"] = found["model.shared.weight"].copy()
        found["lm_head.weight"] = normal(vocabulary, D)
        found["lm_head.weight"][words:] *= 0.1  # marks are seldom written
        found["lm_head.weight"][0 if kind == "marian" else 2] *= 4  # outputs end
        found["model.decoder.embed_tokens.weight"][words:] *= 4  # and depend on theirs
    if kind == "marian":
        found["model.shared.weight"][words:-1] *= 10  # marks matter
        found["model.shared.weight"][-1] = 0  # padding begins an output
        for side in ("encoder", "decoder"):
            found[f"model.{side}.embed_tokens.weight"] = found["model.shared.weight"].copy()
        found["final_logits_bias"] = normal(1, vocabulary)
    return found


def save(path: Path, found: Weights) -> None:
    header, data = {}, b""
    for name, array in found.items():
        kind = {"float32": "F32", "float16": "F16"}[array.dtype.name]
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
        data += array.tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _vocabulary(path: Path, words: Iterable[str]) -> None:
    _json(path, {word: number for number, word in enumerate(words)})


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
