"""Our own server over the Transformers library, in a process of its own.

    python -m modelyard.servers.transformers '{"address": "unix:/p.sock", "model": "m", "path": "/folder", …}'

Started by the launcher for models of engine `transformers`; the argument is `parameters.Parameters`. It
listens before it loads, and never asks anything of the network.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from modelyard.servers import plain_http
from modelyard.servers.transformers.api import Api
from modelyard.servers.transformers.generation import Model
from modelyard.servers.transformers.parameters import Parameters, parse

_KEEP_ALIVE = 3600.0
_KEPT_REQUESTS = 1 << 31


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; 1 when the model cannot be loaded or fails, 2 for bad parameters."""
    try:
        parameters = parse(argv)
    except (ValueError, TypeError) as error:
        _log(f"error: invalid argument: {error}")
        return 2
    os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a request's text is short
    return asyncio.run(_serve(parameters))


async def _serve(parameters: Parameters) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    def failed(message: str) -> None:
        _log(f"error: the model has failed: {message}")
        end(1)

    def loaded(loading: asyncio.Future[Model | None]) -> None:
        api.model = loading.result()
        if api.model is None:
            end(1)
        else:
            _log("model loaded")

    api = Api(parameters, failed)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    try:
        server = await plain_http.listen(parameters.address, api.handle, _KEEP_ALIVE, _KEPT_REQUESTS)
    except OSError as error:
        _log(f"couldn't bind to {parameters.address}: {error}")
        return 1
    _log(f"listening on {parameters.address}, loading {parameters.path}")
    loading = loop.run_in_executor(None, _load, parameters)
    loading.add_done_callback(loaded)
    code = await ended
    server.close()
    _remove_socket(parameters.address)
    sys.stderr.flush()
    # At once: threads of the libraries would be waited for, and hold nothing that has to be saved.
    os._exit(code)


def _load(parameters: Parameters) -> Model | None:
    try:
        from modelyard.servers.transformers.loading import load  # noqa: PLC0415 - seconds, and it may be absent
    except ImportError as error:
        _log(f"{error}; run `pip install 'modelyard[transformers]'` for this interpreter")
        return None
    try:
        return load(parameters)
    except Exception as error:  # whatever the libraries raise: it ends the process
        _log(f"error: failed to load model: {type(error).__name__}: {error}")
        return None


def _remove_socket(address: str) -> None:
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
