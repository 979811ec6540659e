"""Folders as sources: which of their files a model needs, and what these tell together.

To the store, a folder at a server has one file of its own, the *list*: what the folder held when it was asked
first, each file with the source that stands for its bytes. A folder on this machine is looked at each time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from modelyard.errors import BadFile, SourceNotFound
from modelyard.servers.translation import packed
from modelyard.servers.translation.families import CONVERTED, WORDS
from modelyard.store.formats import LISTED, Terms
from modelyard.store.pace import LARGEST, BadAnswer

MOST = 1000  # files of one folder that are fetched
MOST_SEEN = 20_000
LARGEST_TEXT = 256 * 2**20  # bytes of a file that is not weights; a larger one is left out
CONFIG = "config.json"
LONGEST_CONFIG = 2**20  # bytes
_DEEPEST = 4
_SHOWN = 5
_LONGEST_NAME = 255
# Folders with the same weights in forms for other programs, with what training left, or hidden ones.
_ASIDE = re.compile(r"\.[^.].*|original|onnx|openvino|coreml|metal|tflite|gguf|checkpoint-\d+|runs")
_WEIGHTS = re.compile(r".*\.safetensors", re.DOTALL)
_PICKLES = re.compile(r"(?:.*/)?(?!(?:training_args|optimizer|scheduler)\.bin$)[^/]*\.bin", re.DOTALL)
_TEXTS = re.compile(r".*\.(?:json|jinja|txt|tiktoken|model|spm)|vocab\..*|tokenizer\.model\..*", re.DOTALL)
_CODE = re.compile(r".*\.py", re.DOTALL)
# The same weights again: in another type, or as their makers had them.
_AGAIN = re.compile(r"(?:.*/)?(?:consolidated.*|.*\.(?:fp16|bf16|fp32)(?:-\d{5}-of-\d{5})?)\.safetensors")
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<kind>\.\w+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a folder: its name there, with `/` between folders, its size in bytes, and the source text
    that stands for it and for no other bytes."""

    name: str
    size: int
    source: str

    @property
    def is_weights(self) -> bool:
        return bool(_WEIGHTS.fullmatch(self.name) or _PICKLES.fullmatch(self.name))


def listed(found: Iterable[Member], source: str) -> list[Member]:
    """Those that a model may need of all that a folder holds, in an order of their own. Raises SourceNotFound
    for one without weights or with too many files, BadAnswer for names that no folder can have."""
    kept: dict[str, Member] = {}
    ggufs = []
    for number, member in enumerate(found):
        if member.name.endswith(".gguf"):
            ggufs.append(member)
        if _may_be_needed(member):
            _check(member, source)
            kept[member.name] = member
        if len(kept) > MOST or number >= MOST_SEEN:
            raise SourceNotFound(
                f"{source}: holds more files than a model has ({MOST} that it may need, {MOST_SEEN} in all); "
                "name a folder with one model"
            )
    if not any(member.is_weights for member in kept.values()):
        if ggufs:
            names = sorted(member.source for member in ggufs)
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise SourceNotFound(
                f"{source}: each of its GGUF files is a model; name one: {', '.join(names[:_SHOWN])}{more}"
            )
        raise SourceNotFound(f"{source}: holds no weights (*.safetensors); name the folder that does")
    return sorted(kept.values(), key=lambda member: (member.is_weights, member.name))


def chosen(members: Sequence[Member], terms: Terms, source: str) -> list[Member]:
    """Those that are fetched under these terms: one set of weights, and what goes with it. Code, and weights
    that are pickles, only where they are allowed. Raises BadFile, SourceNotFound where some is missing."""
    weights = [one for one in members if _WEIGHTS.fullmatch(one.name)]
    weights = [one for one in weights if not _AGAIN.fullmatch(one.name)] or weights
    if not weights and any(WORDS.fullmatch(one.name) for one in members):
        weights = [one for one in members if one.name == CONVERTED]
    if not weights:
        weights = [one for one in members if _PICKLES.fullmatch(one.name)]
        if not terms.allow_pickle:
            raise BadFile(
                f"{source}: its weights are pickles ({weights[0].name}), and reading one runs the code in "
                "it; take one with safetensors, or say `allow_pickle: true` if you trust it"
            )
    _check_shards(weights, source)
    others = [
        one for one in members if not one.is_weights and (terms.allow_pickle or not _CODE.fullmatch(one.name))
    ]
    return [*others, *weights]


def to_list(members: Iterable[Member]) -> bytes:
    """The list as a file; the same for the same members."""
    files = json.dumps([astuple(one) for one in members], separators=(",", ":"), ensure_ascii=False)
    return LISTED + files.encode() + b"}"


def of_list(content: bytes) -> list[Member]:
    """The members of a list. Raises ValueError for what is none."""
    try:
        return [
            Member(str(name), int(size), str(source)) for name, size, source in json.loads(content)["files"]
        ]
    except (TypeError, KeyError, RecursionError):
        raise ValueError("this is no list of files") from None


def in_folder(folder: Path) -> list[Member]:
    """What lies in a folder of this machine. Raises OSError."""
    return listed([Member(name, size, str(folder / name)) for name, size in sizes(folder)], str(folder))


def sizes(folder: Path) -> list[tuple[str, int]]:
    """The names and sizes of the files below a folder of this machine. Raises OSError."""
    found = islice(_files(folder, _DEEPEST), MOST_SEEN + 1)
    return [(str(path.relative_to(folder)), path.stat().st_size) for path in found]


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif depth > 1 and not _is_aside(path.name) and path.is_dir() and not path.is_symlink():
            yield from _files(path, depth - 1)


def _may_be_needed(member: Member) -> bool:
    *folders, name = PurePosixPath(member.name).parts or ("",)
    if name.startswith(".") or len(folders) >= _DEEPEST:
        return False
    if any(_is_aside(folder) for folder in folders):
        return False
    if member.is_weights:
        return True
    return member.size <= LARGEST_TEXT and bool(_TEXTS.fullmatch(name) or _CODE.fullmatch(name))


def _is_aside(folder: str) -> bool:
    return bool(_ASIDE.fullmatch(folder))


def _check(member: Member, source: str) -> None:
    """Names are those of strangers, and become files."""
    parts = member.name.split("/")
    fits = member.name.isprintable() and "\\" not in member.name
    if not fits or any(not 0 < len(one.encode()) <= _LONGEST_NAME or one in {".", ".."} for one in parts):
        raise BadAnswer(f"{source}: lists a file {member.name[:100]!r}, which no folder has; it is not used")
    if not 0 <= member.size <= LARGEST:
        raise BadAnswer(f"{source}: lists a file of {member.size} bytes; it is not used")


def _check_shards(weights: Iterable[Member], source: str) -> None:
    """Weights that are numbered have to be all there."""
    there = {member.name for member in weights}
    for name in sorted(there):
        part = _SHARD.fullmatch(name)
        if part is None:
            continue
        for number in range(1, min(int(part["count"]), MOST) + 1):
            wanted = f"{part['stem']}-{number:05}-of-{part['count']}{part['kind']}"
            if wanted not in there:
                raise SourceNotFound(f"{source}: lacks {wanted}, which goes with {name}; fetch it whole")


# -- what its files tell ---------------------------------------------------------------------------------


def facts(
    members: Sequence[Member], heads: Mapping[str, Mapping[str, object]], config: bytes
) -> dict[str, object]:
    """The header of a folder: `kind`; `config`, what its config.json says, bounded; `bytes` of its weights;
    and where the `heads` of all its weights tell, how many `parameters`, and `dtypes`, how many of each."""
    weights = [member for member in members if member.is_weights]
    told = [heads.get(member.name) or {} for member in weights]
    found: dict[str, object] = {"kind": "pickle", "config": config_of(config)}
    if any(_WEIGHTS.fullmatch(member.name) for member in weights):
        found["kind"] = "safetensors"
    elif told and told[0].get("kind") == packed.KIND:
        return {**told[0], "config": {**config_of(config), **_config(told[0])}}
    found["bytes"] = sum(
        _whole(head.get("bytes"), member.size) for head, member in zip(told, weights, strict=True)
    )
    if all("parameters" in head for head in told):
        dtypes: dict[str, int] = {}
        for head in told:
            counts = head.get("dtypes")
            for name, count in counts.items() if isinstance(counts, Mapping) else ():
                dtypes[name] = dtypes.get(name, 0) + count
        found |= {"parameters": sum(dtypes.values()), "dtypes": dtypes}
    return found


def config_of(content: bytes) -> dict[str, object]:
    """What a config.json says, as far as it is short; empty for what is no such file."""
    try:
        found = _bounded(json.loads(content), 4) if len(content) <= LONGEST_CONFIG else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _bounded(value: object, depth: int) -> object:
    """A value without what is long; None in its place."""
    if isinstance(value, dict):
        few = len(value) <= 200 and depth
        return {key[:100]: _bounded(one, depth - 1) for key, one in value.items()} if few else None
    if isinstance(value, list):
        return [_bounded(one, depth - 1) for one in value] if len(value) <= 512 and depth else None
    if isinstance(value, str):
        return value if len(value) <= 200 else None
    return value


def _config(head: Mapping[str, object]) -> Mapping[str, object]:
    found = head.get("config")
    return found if isinstance(found, Mapping) else {}


def _whole(value: object, other: int) -> int:
    return value if isinstance(value, int) else other
