"""A model for CTranslate2 as one file: its model.bin, and behind that a zip archive of what lies beside.

    python -m modelyard.servers.translation.packed SOURCE TARGET TYPE

The store makes it of a folder, once, and keeps it; a server unpacks it into a folder of its own, where
model.bin is a link: CTranslate2 does not read past what belongs to it.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from modelyard.errors import BadFile, ModelyardError
from modelyard.servers.translation import families, model_bin, sentencepieces

KIND = "ctranslate2"
FACTS = "facts.json"
_LONGEST_FACTS = 4 << 20
_LONGEST_TEXT = 200
_LARGEST = 256 << 20  # bytes of all that lies beside
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
"""What reading an archive raises that is not whole, or says that it is packed in some other way."""


def pack(source: Path, target: Path, type: str) -> None:
    """Write the file `target` of a folder as Hugging Face has it, or of one that is for CTranslate2 already:
    its weights stay what they are, whatever type is asked for. Raises what `convert` raises."""
    facts = {"config": families.config_of(source), "translation": families.read(source).told, "type": type}
    with TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as name:
        folder = Path(name)
        weights = folder / families.CONVERTED
        if families.is_converted(source):
            _copy(source, folder)
            with weights.open("rb") as file:
                facts["type"] = model_bin.read(file).type
        else:
            from modelyard.servers.translation.convert import convert  # noqa: PLC0415 - NumPy, CTranslate2

            convert(source, folder, type)
        (folder / FACTS).write_text(json.dumps(facts))
        beside = sorted(path for path in folder.iterdir() if path != weights)
        with zipfile.ZipFile(weights, "a", zipfile.ZIP_DEFLATED) as archive:
            for path in beside:
                archive.write(path, path.name)
        weights.rename(target)


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.name in {*families.TOKENIZER_FILES, families.CONFIG, families.CONVERTED} or (
            families.WORDS.fullmatch(path.name)
        ):
            shutil.copyfile(path, target / path.name)
    if not any((target / name).is_file() for name in (families.PIECES, families.SOURCE_PIECES)):
        (target / families.PIECES).write_bytes(sentencepieces.of_tokenizer(source))


def facts(file: BinaryIO) -> dict[str, object]:
    """What such a file says of itself, as the header of a folder: `kind`, `bytes`, `dtypes` (all of one
    type), what is short of its model's `config`, and `translation`; of a model.bin alone, what that tells.
    Raises BadFile, which names no path."""
    weights = model_bin.read(file)
    if weights.end == (size := file.seek(0, 2)):
        return {"kind": KIND, "bytes": size, "dtypes": {weights.type: size}, "config": weights.config}
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo(FACTS).file_size > _LONGEST_FACTS:
                raise ValueError
            found = json.loads(archive.read(FACTS))
        config = {name: value for name, value in found["config"].items() if _is_short(value)}
        codes = {name: [*map(str, found["translation"][name])] for name in ("sources", "targets")}
    except (*_DAMAGED, AttributeError, KeyError, TypeError):
        raise BadFile("this is a model for CTranslate2 that is not whole, or lacks its tokenizer") from None
    dtypes = {str(found.get("type")): size}
    return {"kind": KIND, "bytes": size, "dtypes": dtypes, "config": config, "translation": codes}


def _is_short(value: object) -> bool:
    return isinstance(value, int | float | bool) or (isinstance(value, str) and len(value) <= _LONGEST_TEXT)


def unpack(path: Path, folder: Path) -> None:
    """Have `folder`, which is there, be one that CTranslate2 can load. Raises BadFile, OSError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            named = all(Path(one.filename).name == one.filename for one in members)
            if not named or sum(one.file_size for one in members) > _LARGEST:
                raise BadFile(f"{path}: holds what no model has; have it made again")
            for member in members:
                with archive.open(member) as file, (folder / member.filename).open("wb") as copy:
                    shutil.copyfileobj(file, copy)
    except _DAMAGED as error:
        raise BadFile(f"{path}: is not whole ({error}); have it made again") from None
    weights = folder / families.CONVERTED
    weights.unlink(missing_ok=True)
    weights.symlink_to(path.absolute())


def main(argv: list[str]) -> int:
    if len(argv) != 3:
        print("usage: SOURCE TARGET TYPE", file=sys.stderr)
        return 2
    try:
        pack(Path(argv[0]), Path(argv[1]), argv[2])
    except (ModelyardError, ImportError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
