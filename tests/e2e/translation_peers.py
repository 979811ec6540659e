"""Our conversion, tokenizers and back ends beside PyTorch, Transformers and CTranslate2's own converter, on
the same weights. Run by test_translation_peers with the Python that has them: `make FOLDER` makes models of
random weights, `CHECKS FOLDER…` prints what differs, as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ctranslate2
import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from modelyard.servers.translation import families, weights
from modelyard.servers.translation.backends import Backend
from modelyard.servers.translation.convert import convert
from modelyard.servers.translation.ctranslate2_backend import CTranslate2Backend
from servers.translation import contract, random_models
from translation import corpus

MODELS = Path(corpus.__file__).parent / "models"

TEXTS = (
    *("The red house.", "two dogs and a cat", "not 12!", "é ü 🙂 x", 'Le chien rouge, c\'est "vrai"?', "A"),
    *("ﬁne Ⅳ ½ full　width", "tabs\tand  spaces", "it is 7:30 p.m.", "x" * 40),
)
MOST = 12


def made(folder: Path, target: Path, type: str | None = None) -> Path:
    target.mkdir()
    convert(folder, target, type)
    return target


def pairs(backend: Backend) -> list[tuple[str, str]]:
    several = (("en", "fr"), ("de", "es"), ("fr", "de"), ("en", "it"))
    return [pair for pair in several if pair in backend.pairs]


def asked(folder: Path, backend: Backend) -> list[tuple[str, str, str]]:
    """Texts with their source and target. Trained models get what they know: in anything else two words may
    be as likely as each other."""
    if folder.parent == MODELS:
        known = corpus.testing(11, 20)
        return [(text[source], source, target) for text in known for source, target in pairs(backend)]
    return [(text, *pair) for text in TEXTS for pair in pairs(backend)]


def back_ends(folder: Path, work: Path) -> Iterator[str]:
    """Both of ours on the same weights give the same, alone and in batches of several pairs."""
    one = CTranslate2Backend(made(folder, work / "ours"), dtype="float32", threads=1)
    other = contract.opened("transformers", folder)
    segments = [one.segment(*each) for each in asked(folder, one)]
    found, wanted = (each.run(segments, max_output=MOST) for each in (one, other))
    for segment, ours, theirs in zip(segments, found, wanted, strict=True):
        if ours != theirs:
            yield f"{segment}: {ours} and {theirs}"


def library(folder: Path, work: Path) -> Iterator[str]:
    """The same tokens, and the same translation, as Transformers has with the model's own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForSeq2SeqLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    ours = CTranslate2Backend(made(folder, work / "library"), dtype="float32", threads=1)
    family = families.read(folder)
    for text, source, target in asked(folder, ours):
        segment = ours.segment(text, source, target)
        mark = _told(tokenizer, family, source, target)
        before = family.marks(source, target)[0] if family.name == "marian" else ()
        inputs = tokenizer(" ".join([*before, *text.split()]), return_tensors="pt")
        tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
        known = tokenizer.get_vocab()
        mine = [token if token in known or token.startswith("__") else "<unk>" for token in segment.tokens]
        if mine != tokens:
            yield f"tokens of {text!r}: {mine} and {tokens}"
        output = model.generate(
            **inputs, num_beams=1, do_sample=False, max_new_tokens=MOST + bool(segment.prefix), **mark,
            forced_eos_token_id=None,
        )[0]  # fmt: skip
        wanted = tokenizer.decode(output[1 + bool(mark) :], skip_special_tokens=True)
        found = ours.run([segment], max_output=MOST)[0].text
        if found != wanted:
            yield f"{source}-{target} of {text!r}: {found!r} and {wanted!r}"


def _told(tokenizer: Any, family: families.Family, source: str, target: str) -> dict[str, int]:
    if family.name == "marian":
        return {}
    (before,), (mark,) = family.marks(source, target)
    tokenizer.src_lang = before.strip("_") if family.name == "m2m100" else before
    return {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(mark)}


def converter(folder: Path, work: Path) -> Iterator[str]:
    """CTranslate2's own converter makes a folder that we read and that gives the same, if it makes one."""
    ours = CTranslate2Backend(made(folder, work / "own"), dtype="float32", threads=1)
    names = {*families.TOKENIZER_FILES, families.TOKENIZER} - {families.VOCABULARY}
    copied = [name for name in names if (folder / name).is_file()]
    convert = ctranslate2.converters.TransformersConverter(str(folder), copy_files=copied).convert
    try:
        convert(str(work / "theirs"))
    except ValueError as error:
        yield f"refused: {error}"
        return
    theirs = CTranslate2Backend(work / "theirs", dtype="float32", threads=1)
    if (theirs.languages, theirs.longest) != (ours.languages, ours.longest):
        yield f"{theirs.languages} of {theirs.longest} tokens and {ours.languages} of {ours.longest}"
    segments = [ours.segment(*each) for each in asked(folder, ours)]
    found, wanted = (each.run(segments, max_output=MOST) for each in (ours, theirs))
    for segment, one, other in zip(segments, found, wanted, strict=True):
        if one != other:
            yield f"{segment}: {one} and {other}"


def pickles(folder: Path, work: Path) -> Iterator[str]:
    """PyTorch's files, of either form and any type, are read as PyTorch reads them."""
    base = weights.read(folder)
    tensors = {name: torch.from_numpy(np.array(one)) for name, one in base.items()}
    some = next(iter(tensors.values()))
    tensors |= {
        "turned": some.T,
        "part": some[1:3, ::2],
        "number": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
    }
    tensors["parameter"] = torch.nn.Parameter(some.clone())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for zipped in (True, False):
            state = {name: one.to(dtype) if name != "part" else one for name, one in tensors.items()}
            target = work / f"{dtype}-{zipped}"
            target.mkdir()
            torch.save(state, target / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
            found = weights.read(target)
            for name, one in state.items():
                if not np.array_equal(found[name].astype("f4"), one.detach().float().numpy()):
                    yield f"{dtype}, zipped {zipped}: {name}"


def main(checks: Sequence[str], folders: Sequence[str]) -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    known = {each.__name__: each for each in (back_ends, library, converter, pickles)}
    found = {}
    for folder in map(Path, folders):
        for check in checks:
            with TemporaryDirectory() as work:
                found[f"{folder.name} {check}"] = list(known[check](folder, Path(work)))
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        for maker in (random_models.m2m100, random_models.nllb, random_models.marian, random_models.group):
            folder = maker(Path(sys.argv[2]) / maker.__name__)
            AutoTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
        # As Transformers writes one now: without SentencePiece's file.
        saved = Path(sys.argv[2]) / "saved"
        shutil.copytree(Path(sys.argv[2]) / "nllb", saved)
        (saved / families.PIECES).unlink()
        # As many are on the hub: nothing there says which of its tokens are marks.
        folder = random_models.m2m100(Path(sys.argv[2]) / "plain")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "M2M100Tokenizer"}')
    else:
        main(sys.argv[1].split(","), sys.argv[2:])
