"""Trains the small translation models of examples/translation/models: real architectures, a made-up world.

    .cache/engines/bin/python scripts/train_translation.py m2m100    # or a pair, as en-fr

The environment is that of scripts/engines-env. Everything is drawn from one seed. What it prints, and writes
into the model's card, is the share of held-out sentences that come out exactly right, per direction.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

# Threads that wait busily take from each other what they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import sentencepiece
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
)
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from translation import corpus  # noqa: E402

MODELS = ROOT / "examples" / "translation" / "models"
SEED = 7
TEST_SEED = 11
VOCABULARY = {"m2m100": 1000, "pair": 440}
MADE_UP = 8  # that M2M100's tokenizer counts to its vocabulary
POSITIONS = 256
Pair = tuple[str, str]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("model", help="m2m100, or a pair as en-fr")
    arguments.add_argument("--out", type=Path, help="the folder to write, else the one in examples/")
    arguments.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[4000, 700],
        help="of each round; the weights are the mean of those after each",
    )
    arguments.add_argument("--batch", type=int, default=64, help="sentences of one step")
    arguments.add_argument(
        "--rate", type=float, default=2e-3, help="the highest learning rate; half in each next round"
    )
    arguments.add_argument("--on", action="store_true", help="go on with the weights that the folder has")
    arguments.add_argument("--threads", type=int, default=2)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    pairs = list(corpus.PAIRS) if given.model == "m2m100" else [_pair(given.model)]
    folder = given.out or MODELS / given.model
    folder.mkdir(parents=True, exist_ok=True)
    commands = _commands(given, folder)
    tokenizer, model = _there(folder, pairs) if given.on else _made(folder, pairs)
    weights = []
    for number, steps in enumerate(given.steps):
        print(f"round {number + 1}: {steps} steps")
        batches = _batches(tokenizer, pairs, given.batch, SEED + 10 * len(commands) - 10 + number)
        _train(model, batches, steps, given.rate / 2**number)
        # In half precision, as they are written.
        weights.append({name: value.half().float() for name, value in model.state_dict().items()})
        model.load_state_dict(weights[-1])
    mean = {name: sum(each[name] for each in weights) / len(weights) for name in weights[0]}
    model.load_state_dict(mean)
    model.generation_config.max_length = POSITIONS
    model.half().save_pretrained(folder)
    model = type(model).from_pretrained(folder, dtype=torch.float32)
    shares = exactness(model, tokenizer, pairs, corpus.testing(TEST_SEED, 500))
    (folder / "README.md").write_text(_card(given.model, commands, model, shares))
    print(*(f"{'-'.join(pair)} {share:.1%}" for pair, share in shares.items()), sep="\n")


def _pair(text: str) -> Pair:
    source, _, target = text.partition("-")
    if (source, target) not in corpus.PAIRS:
        raise SystemExit(f"{text} is not m2m100, nor a pair of {', '.join(corpus.LANGUAGES)}")
    return source, target


def _commands(given: argparse.Namespace, folder: Path) -> list[str]:
    """What made the model, this time included."""
    card = folder / "README.md"
    before = re.findall(r"^\$ (python .*)$", card.read_text(), re.MULTILINE) if given.on else []
    options = f"--steps {' '.join(map(str, given.steps))} --batch {given.batch} --rate {given.rate:g}"
    return [*before, f"python scripts/train_translation.py {given.model} {options}{' --on' * given.on}"]


def _made(folder: Path, pairs: list[Pair]) -> tuple[Any, Any]:
    """The tokenizer, which is written, and a model that has learned nothing."""
    if len(pairs) > 1:
        tokenizer = _m2m100_tokenizer(folder)
        return tokenizer, _m2m100(tokenizer)
    tokenizer = _marian_tokenizer(folder, *pairs[0])
    return tokenizer, _marian(tokenizer)


def _there(folder: Path, pairs: list[Pair]) -> tuple[Any, Any]:
    """Tokenizer and model of an earlier training."""
    if len(pairs) > 1:
        kinds: tuple[Any, Any] = M2M100Tokenizer, M2M100ForConditionalGeneration
    else:
        kinds = MarianTokenizer, MarianMTModel
    return kinds[0].from_pretrained(folder), kinds[1].from_pretrained(folder, dtype=torch.float32)


# Tokenizers


def _pieces(languages: tuple[str, ...], size: int) -> bytes:
    sentences = itertools.islice(corpus.training(SEED), 30_000)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([sentence[code] for sentence in sentences for code in languages]),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        character_coverage=1.0,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _names(model: bytes) -> list[str]:
    """Its pieces without its special ones."""
    read = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [read.id_to_piece(number) for number in range(read.get_piece_size()) if not _special(read, number)]


def _special(read: Any, number: int) -> bool:
    return bool(read.is_control(number) or read.is_unknown(number))


def _m2m100_tokenizer(folder: Path) -> Any:
    with tempfile.TemporaryDirectory() as work:
        pieces = _pieces(corpus.LANGUAGES, VOCABULARY["m2m100"])
        (Path(work) / "pieces").write_bytes(pieces)
        names = ["<s>", "<pad>", "</s>", "<unk>", *_names(pieces)]
        (Path(work) / "vocab.json").write_text(
            json.dumps({name: number for number, name in enumerate(names)})
        )
        # The published ones name their languages' tokens as special: else they stay in what is decoded.
        languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
        M2M100Tokenizer(
            f"{work}/vocab.json",
            f"{work}/pieces",
            additional_special_tokens=languages,
            model_max_length=POSITIONS,
        ).save_pretrained(folder)
    return M2M100Tokenizer.from_pretrained(folder)


def _marian_tokenizer(folder: Path, source: str, target: str) -> Any:
    with tempfile.TemporaryDirectory() as work:
        names = ["</s>", "<unk>"]
        for side, code in (("source", source), ("target", target)):
            pieces = _pieces((code,), VOCABULARY["pair"])
            (Path(work) / f"{side}.spm").write_bytes(pieces)
            names += [name for name in _names(pieces) if name not in names]
        names.append("<pad>")
        (Path(work) / "vocab.json").write_text(
            json.dumps({name: number for number, name in enumerate(names)})
        )
        MarianTokenizer(
            f"{work}/source.spm",
            f"{work}/target.spm",
            f"{work}/vocab.json",
            source_lang=source,
            target_lang=target,
            model_max_length=POSITIONS,
        ).save_pretrained(folder)
    return MarianTokenizer.from_pretrained(folder)


# Models


def _m2m100(tokenizer: Any) -> Any:
    config = M2M100Config(
        vocab_size=tokenizer.vocab_size + len(tokenizer.lang_code_to_id) + MADE_UP,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        **_shape(128, 256),
    )
    return M2M100ForConditionalGeneration(config)


def _marian(tokenizer: Any) -> Any:
    config = MarianConfig(
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
        activation_function="swish",
        scale_embedding=True,
        **_shape(96, 256),
    )
    return MarianMTModel(config)


def _shape(width: int, inner: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }


# Training


def _train(model: Any, batches: Iterator[dict[str, Any]], steps: int, rate: float) -> None:
    inner = [value for name, value in model.named_parameters() if value.ndim == 2 and "layers" in name]
    rest = [value for name, value in model.named_parameters() if value.ndim != 2 or "layers" not in name]
    optimizers = [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    warm = min(300, steps // 10 + 1)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: min((step + 1) / warm, 1 - step / steps))
        for each in optimizers
    ]
    model.train()
    for step, given in enumerate(itertools.islice(batches, steps), 1):
        loss = model(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        model.zero_grad()
        if step % 100 == 0:
            print(f"step {step}, loss {float(loss.detach()):.4f}", flush=True)


def _batches(tokenizer: Any, pairs: list[Pair], batch: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Without an end: sentences of about one length, of all pairs."""
    random = Random(seed)
    stream = corpus.training(seed)
    while True:
        drawn = itertools.islice(stream, 24 * batch)
        pool = [_encoded(tokenizer, random.choice(pairs), sentence) for sentence in drawn]
        pool.sort(key=lambda pair: (len(pair[0]) + len(pair[1]), random.random()))
        batches = [pool[at : at + batch] for at in range(0, len(pool), batch)]
        random.shuffle(batches)
        for each in batches:
            sources = _padded([source for source, _ in each], tokenizer.pad_token_id)
            yield {
                "input_ids": sources,
                "attention_mask": (sources != tokenizer.pad_token_id).long(),
                "labels": _padded([target for _, target in each], -100),
            }


def _encoded(tokenizer: Any, pair: Pair, sentence: dict[str, str]) -> tuple[list[int], list[int]]:
    tokenizer.src_lang, tokenizer.tgt_lang = pair
    return (
        tokenizer(sentence[pair[0]])["input_ids"],
        tokenizer(text_target=sentence[pair[1]])["input_ids"],
    )


def _padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


# What comes out


def exactness(
    model: Any, tokenizer: Any, pairs: list[Pair], sentences: list[dict[str, str]]
) -> dict[Pair, float]:
    """The share of each pair's translations that are exactly right."""
    model.eval()
    shares = {}
    for source, target in pairs:
        said = translate(model, tokenizer, (source, target), [sentence[source] for sentence in sentences])
        right = sum(text == sentence[target] for text, sentence in zip(said, sentences, strict=True))
        shares[source, target] = right / len(sentences)
    return shares


def translate(model: Any, tokenizer: Any, pair: Pair, texts: list[str]) -> list[str]:
    """By greedy search, in the order of the texts."""
    tokenizer.src_lang, tokenizer.tgt_lang = pair
    options: dict[str, Any] = {"num_beams": 1, "do_sample": False}
    if hasattr(tokenizer, "get_lang_id"):
        options["forced_bos_token_id"] = tokenizer.get_lang_id(pair[1])
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    said = [""] * len(texts)
    for at in range(0, len(order), 100):
        chosen = order[at : at + 100]
        given = tokenizer([texts[index] for index in chosen], return_tensors="pt", padding=True)
        made = tokenizer.batch_decode(model.generate(**given, **options), skip_special_tokens=True)
        for index, text in zip(chosen, made, strict=True):
            said[index] = text
    return said


def _card(name: str, commands: list[str], model: Any, shares: dict[Pair, float]) -> str:
    parameters = sum(value.numel() for value in model.parameters())
    lines = [f"| {source}-{target} | {share:.1%} |" for (source, target), share in shares.items()]
    return CARD.format(
        name=name,
        commands="\n".join(f"$ {command}" for command in commands),
        architecture=type(model).__name__,
        languages=", ".join(sorted({code for pair in shares for code in pair})),
        parameters=f"{parameters / 1e6:.2f}",
        seed=SEED,
        test_seed=TEST_SEED,
        table="\n".join(lines),
    )


CARD = """\
# {name}

A `{architecture}` of {parameters} million parameters that translates the sentences of
`examples/translation` ({languages}), and no others. It was made to test and to show servers of translation
models, with right answers, at the size of a photograph. Architecture, tokenizer class and files are those of
the published models.

```console
{commands}
```

made it, of sentences that are drawn from seed {seed} on; 150 steps take about a minute on two CPU cores. The
weights of each command are the mean of those after its rounds of steps. One meaning of twenty is kept from
training, in every language; of 500 of those (seed {test_seed}), so many come out exactly right, by greedy
search:

| direction | exact |
|---|---|
{table}

Weights are in half precision. Licence: that of this project (Apache-2.0); nothing in it comes from other
texts or models.
"""


if __name__ == "__main__":
    main()
