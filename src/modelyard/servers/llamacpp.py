"""llama.cpp's own HTTP server out of the `xllamacpp` wheel, in a process of its own.

    python -m modelyard.servers.llamacpp '{"model.path": "/m.gguf", "hostnames": ["/p.sock"], …}'

Started by the launcher for models of engine `llamacpp` where no llama-server is found. The argument maps
attributes of the wheel's CommonParams (dots go inside) to values; an enum's value is the name of its member.
The wheel answers every request itself; this module only fills in the parameters. SIGTERM keeps its default
action, because the wheel holds the interpreter while it loads.
"""

from __future__ import annotations

import json
import signal
import stat
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    """Serve until a signal ends the process; 1 when the model cannot be loaded, 2 for bad parameters."""
    parameters = json.loads(argv[0])
    try:
        import xllamacpp  # noqa: PLC0415 - heavy, and its absence has a message of its own
    except ImportError as error:
        _log(f"{error}; install modelyard[llamacpp], or put llama-server on PATH")
        return 1
    for host in parameters.get("hostnames", []):
        _remove_stale_socket(Path(host))
    try:
        params = fill(xllamacpp, parameters)
    except (ValueError, OSError) as error:
        _log(f"error: {error}")
        return 2
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        _log(f"error: {error}")
        return 1
    _log(f"listening on {server.listening_address}")
    while True:
        signal.pause()


def fill(xllamacpp: Any, parameters: Mapping[str, object]) -> Any:
    """The wheel's CommonParams with these values. Raises an error that names the parameter."""
    params = xllamacpp.CommonParams()
    for path, value in parameters.items():
        try:
            if path == "chat_template_file":
                params.chat_template = Path(str(value)).read_text()
                continue
            *parents, name = path.split(".")
            target = params
            for parent in parents:
                target = getattr(target, parent)
            setattr(target, name, _converted(xllamacpp, name, getattr(target, name), value))
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {value!r} is not a parameter of xllamacpp ({error})") from None
    return params


def _converted(xllamacpp: Any, name: str, current: object, value: object) -> object:
    if name == "lora_adapters" and isinstance(value, list):
        return [xllamacpp.CommonAdapterLoraInfo(item["path"], item["scale"]) for item in value]
    if name == "tensor_split" and isinstance(value, list) and isinstance(current, list):
        return value + [0.0] * (len(current) - len(value))
    if isinstance(current, Enum):
        return type(current)[str(value)]
    if isinstance(current, set) and isinstance(value, list):
        return set(value)
    if isinstance(value, list) and isinstance(current, list) and current and isinstance(current[0], Enum):
        return [type(current[0])[str(item)] for item in value]
    return value


def _remove_stale_socket(path: Path) -> None:
    """The wheel cannot bind to a socket file that an earlier process left."""
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
    except FileNotFoundError:
        return


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
