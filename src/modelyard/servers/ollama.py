"""Ollama's own server, over a model store that holds the files of one version alone.

    python -m modelyard.servers.ollama '{"program": "/usr/bin/ollama", "blobs": {"sha256:…": "/m.gguf"}}'

Started by the launcher for models of engine `ollama`, in an empty folder of its own. The store is that
folder, and so is the home in which Ollama keeps a key: the user's own stay as they are. Files are linked into
it, none is copied, and the process becomes the program. Ollama makes a model of them when it is asked to (its
`/api/create`); there it also finds the chat template for a file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Never returns when the program can be executed."""
    given = json.loads(argv[0])
    store = Path.cwd()
    blobs = store / "blobs"
    blobs.mkdir()
    for digest, path in given["blobs"].items():
        (blobs / digest.replace(":", "-")).symlink_to(path)
    program, own = given["program"], {"HOME": str(store), "OLLAMA_MODELS": str(store)}
    try:
        os.execvpe(program, [program, "serve"], {**os.environ, **own})  # noqa: S606 - that is its purpose
    except OSError as error:
        print(f"{program} cannot be executed: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
