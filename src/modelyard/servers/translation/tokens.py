"""Texts as a model's own tokenizer has them, by its files: SentencePiece's pieces, its vocabulary, its marks.

Without Transformers, which needs seconds and PyTorch. What a text says is never taken for one of the marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

from modelyard.errors import BadFile
from modelyard.servers.translation import families, sentencepieces
from modelyard.servers.translation.backends import Segment

END, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"
_NOTHING = "madeupword"
_FIRST = ("<s>", PAD, END, UNKNOWN)
_MASK = "<mask>"


class Tokenizer:
    """The tokenizer of a folder. Raises BadFile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.family = families.read(folder)
        marian = self.family.name == "marian"
        self._reader = _pieces(folder / (families.SOURCE_PIECES if marian else families.PIECES), folder)
        self._writer = _pieces(folder / families.TARGET_PIECES, folder) if marian else self._reader
        self._special = {*_FIRST, _MASK, *self.family.sources.values(), *self.family.targets.values()}

    def segment(self, text: str, source: str, target: str) -> Segment:
        """See Backend.segment."""
        before, prefix = self.family.marks(source, target)
        pieces = self._reader.encode(text, out_type=str)
        plain = (UNKNOWN if piece in self._special else piece for piece in pieces)
        return Segment(source, target, (*before, *plain, END), prefix)

    def text(self, tokens: Sequence[str]) -> str:
        """What was written, without its marks."""
        pieces = [one for one in tokens if one not in self._special and not one.startswith(_NOTHING)]
        return str(self._writer.decode(pieces)).strip()

    def vocabularies(self, source: int, target: int) -> tuple[list[str], list[str]]:
        """What is read and what is written, each token at its number, of a model with weights for so many;
        numbers that no token has are `madeupword…`. Raises BadFile where the weights are too few."""
        return self._padded(self._source_vocabulary, source), self._padded(self._target_vocabulary, target)

    def _padded(self, vocabulary: Sequence[str], size: int) -> list[str]:
        if len(vocabulary) > size:
            raise BadFile(
                f"{self.folder}: its tokenizer has {len(vocabulary)} tokens, and its weights are for {size}: "
                "these are of two models"
            )
        return [*vocabulary, *(f"{_NOTHING}{number}" for number in range(size - len(vocabulary)))]

    @cached_property
    def _source_vocabulary(self) -> list[str]:
        if self.family.name == "nllb":
            pieces = (self._reader.id_to_piece(number) for number in range(3, self._reader.get_piece_size()))
            words = (*_FIRST, *pieces)
            # The marks follow in the order of their list, unless the folder says their numbers.
            marks = _added(self.folder) or _numbered((*families.NLLB_CODES, _MASK), len(words))
            return _in_order(_numbered(words) | marks)
        found = _in_order(families.read_vocabulary(self.folder / families.VOCABULARY))
        # The marks of M2M100 follow its vocabulary, in the order of their list.
        return [*found, *self.family.sources.values()] if self.family.name == "m2m100" else found

    @cached_property
    def _target_vocabulary(self) -> list[str]:
        path = self.folder / families.TARGET_VOCABULARY
        return _in_order(families.read_vocabulary(path)) if path.is_file() else self._source_vocabulary


def _added(folder: Path) -> dict[str, int]:
    """The tokens that its tokenizer.json adds to those of SentencePiece; empty where it has none."""
    path = folder / families.TOKENIZER
    if not path.is_file():
        return {}
    try:
        found = {str(one["content"]): int(one["id"]) for one in families.read_json(path)["added_tokens"]}
    except (KeyError, TypeError, ValueError, OverflowError):
        found = {"": -1}
    if not all(0 <= number < families.MOST_TOKENS for number in found.values()):
        raise BadFile(f"{path}: does not say what it adds; fetch it again")
    return found


def _numbered(words: Sequence[str], first: int = 0) -> dict[str, int]:
    return {word: first + number for number, word in enumerate(words)}


def _in_order(vocabulary: dict[str, int]) -> list[str]:
    found = [f"{_NOTHING}_{number}" for number in range(max(vocabulary.values()) + 1)]
    for token, number in vocabulary.items():
        found[number] = token
    return found


def _pieces(path: Path, folder: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        if not path.is_file():
            return sentencepiece.SentencePieceProcessor(model_proto=sentencepieces.of_tokenizer(folder))
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise BadFile(
            f"{path}: is no SentencePiece model that can be read ({error}); fetch it again"
        ) from None


class Tokenizing:
    """What a back end says by the tokenizer in its model's folder alone; see `backends.Backend`. Raises
    BadFile."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer(folder)
        self.longest = self._tokenizer.family.longest

    @property
    def languages(self) -> Sequence[str]:
        return self._tokenizer.family.languages

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        return self._tokenizer.family.pairs

    def segment(self, text: str, source: str, target: str) -> Segment:
        return self._tokenizer.segment(text, source, target)
