"""Our own server over CTranslate2, in a process of its own.

    python -m modelyard.servers.ctranslate2 '{"address": "unix:/p.sock", "path": "/packed", …}'

Started by the launcher for models of engine `ctranslate2`; the argument is `parameters.Parameters`. It
listens before it loads, and never asks anything of the network.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from modelyard.servers import process
from modelyard.servers.ctranslate2.parameters import Parameters, parse
from modelyard.servers.translation import packed, serving
from modelyard.servers.translation.backends import BATCH_TOKENS, BEAM_SIZE, Backend


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; 1 when the model cannot be loaded or fails, 2 for bad parameters."""
    try:
        parameters = parse(argv)
    except (ValueError, TypeError) as error:
        process.log(f"error: invalid argument: {error}")
        return 2
    # Its threads would spin for work on cores that others need. Read when the library is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = serving.Options(
        beam_size=parameters.beam_size or BEAM_SIZE,
        max_batch_tokens=parameters.max_batch_tokens or BATCH_TOKENS,
        max_wait_ms=serving.WAIT_MS if parameters.max_wait_ms < 0 else parameters.max_wait_ms,
        max_output=parameters.max_output,
        token_bytes=parameters.token_bytes,
    )
    return asyncio.run(serving.serve(parameters.address, parameters.path, lambda: _open(parameters), options))


def _open(parameters: Parameters) -> Backend:
    from modelyard.servers.translation.ctranslate2_backend import CTranslate2Backend  # noqa: PLC0415 - absent?

    given = Path(parameters.path)
    device = f"cuda:{parameters.device_index}" if parameters.device == "cuda" else "cpu"
    dtype = None if parameters.compute_type == "auto" else parameters.compute_type
    with TemporaryDirectory(dir=".", prefix="model.") as name:
        folder = given
        if given.is_file():
            folder = Path(name).absolute()
            packed.unpack(given, folder)
        return CTranslate2Backend(
            folder, device, dtype, replicas=parameters.replicas, threads=parameters.threads
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
