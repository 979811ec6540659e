"""The facts in the headers of files and folders, kept by digest. Used by `cache`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from modelyard.errors import BadFile
from modelyard.servers.translation import families
from modelyard.store import folders
from modelyard.store.disk import Disk
from modelyard.store.folders import CONFIG, LONGEST_CONFIG, Member
from modelyard.store.formats import look
from modelyard.store.source import StoredFile

# Raised when the facts read from a header change, so that old ones are read again.
HEADER_FORMAT = 4


def facts_of(disk: Disk, file: StoredFile) -> Mapping[str, object]:
    """See `Store.header`."""
    # Late: the reader is only needed where a header is not known yet.
    from modelyard.engines.gguf import MAGIC, facts, read_parts  # noqa: PLC0415

    kept = disk.headers / f"{file.digest}.{HEADER_FORMAT}.json"
    try:
        known: Mapping[str, object] = json.loads(kept.read_bytes())
        return known
    except (OSError, ValueError):
        pass
    read: Mapping[str, object]
    if file.names:
        read = _of_folder(file)
    else:
        with file.paths[0].open("rb") as handle:
            is_gguf = handle.read(len(MAGIC)) == MAGIC
        read = facts(read_parts(file.paths)) if is_gguf else look(file.path).facts
    if file.digest and read:
        # A header that cannot be kept is read again next time.
        with suppress(OSError):
            disk.write(kept, json.dumps(read).encode())
    return read


def _of_folder(file: StoredFile) -> dict[str, object]:
    members, heads, config = [], {}, b""
    for name, part in zip(file.names, file.parts, strict=True):
        members.append(member := Member(name, part.size, ""))
        if member.is_weights:
            heads[name] = look(part.path).facts
        elif name == CONFIG:
            with part.path.open("rb") as handle:
                config = handle.read(LONGEST_CONFIG + 1)
    found = folders.facts(members, heads, config)
    with suppress(BadFile, OSError):  # it does not translate, or will say itself what it lacks
        found["translation"] = families.read(file.path).told
    return found
