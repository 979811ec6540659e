"""Our own server over the Transformers library, in a process of its own.

    python -m modelyard.servers.transformers '{"address": "unix:/p.sock", "model": "m", "path": "/folder", …}'

Started by the launcher for models of engine `transformers`; the argument is `parameters.Parameters`. It
listens before it loads, and never asks anything of the network.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from modelyard.servers import process
from modelyard.servers.transformers.api import Api
from modelyard.servers.transformers.generation import Model
from modelyard.servers.transformers.parameters import Parameters, parse
from modelyard.servers.translation import serving
from modelyard.servers.translation.backends import BEAM_SIZE, Backend


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; 1 when the model cannot be loaded or fails, 2 for bad parameters."""
    try:
        parameters = parse(argv)
    except (ValueError, TypeError) as error:
        process.log(f"error: invalid argument: {error}")
        return 2
    os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a request's text is short
    if parameters.translation:
        return asyncio.run(serving.serve(parameters.address, parameters.path, *_translation(parameters)))
    return asyncio.run(
        process.serve(
            parameters.address,
            parameters.path,
            lambda failed: Api(parameters, failed),
            lambda: _load(parameters),
        )
    )


def _translation(parameters: Parameters) -> tuple[Callable[[], Backend], serving.Options]:
    def load() -> Backend:
        import torch  # noqa: PLC0415 - seconds, and it may be absent

        from modelyard.servers.translation.transformers_backend import TransformersBackend  # noqa: PLC0415

        if parameters.threads:
            torch.set_num_threads(parameters.threads)
        dtype = None if parameters.dtype == "auto" else parameters.dtype
        return TransformersBackend(Path(parameters.path), parameters.device, dtype)

    return load, serving.Options(
        beam_size=parameters.beam_size or BEAM_SIZE,
        max_batch_tokens=parameters.batch,
        max_wait_ms=parameters.max_wait_ms or serving.WAIT_MS,
        max_output=parameters.max_output,
        token_bytes=parameters.token_bytes,
    )


def _load(parameters: Parameters) -> Model | None:
    try:
        from modelyard.servers.transformers.loading import load  # noqa: PLC0415 - seconds, and it may be absent
    except ImportError as error:
        process.log(f"{error}; run `pip install 'modelyard[transformers]'` for this interpreter")
        return None
    try:
        return load(parameters)
    except Exception as error:  # whatever the libraries raise: it ends the process
        process.log(f"error: failed to load model: {type(error).__name__}: {error}")
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
