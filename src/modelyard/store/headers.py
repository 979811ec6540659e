"""The facts in the headers of files, kept by digest. Used by `cache`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from modelyard.store.disk import Disk
from modelyard.store.source import StoredFile

# Raised when the facts read from a header change, so that old ones are read again.
HEADER_FORMAT = 2


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
    with file.paths[0].open("rb") as handle:
        if handle.read(len(MAGIC)) != MAGIC:
            return {}
    read = facts(read_parts(file.paths))
    if file.digest:
        # A header that cannot be kept is read again next time.
        with suppress(OSError):
            disk.write(kept, json.dumps(read).encode())
    return read
