"""What the fake engine is told to do: its options, their defaults, and the check of a mapping of them.

Owns the list of options once: the process parses its argv with it, the `fake` adapter validates specs with
it. Standard library only, because the fake engine has to start in milliseconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

MAPPINGS = ("memory", "asleep")  # options that map a device to bytes
LISTS = ("pairs",)
APIS = ("chat", "completions", "embeddings", "rerank", "tokenize")
ALL_APIS = (*APIS, "translate")
DEAD = "the engine behind this server has ended"


@dataclass(frozen=True)
class Script:
    """The behaviour of one fake engine. Seconds, bytes and tokens; 0 means never, none or unlimited.

    Counts of requests (`hang_on_request` …) are 1-based and count generations, the warm-up included.
    """

    # how it works when nothing is wrong
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes to take at load, by device: `ram`, or the name of a pool."""
    asleep: Mapping[str, int] = field(default_factory=dict)
    """Bytes that it holds asleep, by device; with none it does not know how to sleep."""
    load_time: float = 0.0
    wake_time: float = 0.0
    first_token_time: float = 0.0
    tokens_per_second: float = 0.0
    default_tokens: int = 16
    slots: int = 1
    context: int = 0
    apis: tuple[str, ...] = APIS
    """`translate` has to be asked for."""
    pairs: tuple[str, ...] = ()
    """Pairs of languages that it translates, as `en-fr`; with none, any."""
    refused_text: str = ""
    """A text that holds this is not translated."""
    keep_alive: float = 5.0
    keep_alive_requests: int = 100
    seed: int = 0
    thinking_tokens: int = 0
    """Tokens of reasoning before the answer of a chat, unless its template is told not to think."""
    tool_calls: tuple[Mapping[str, object], ...] = ()
    """What a chat that offers tools is answered with, until it holds a tool's result: `name`, `arguments`."""
    # failures at load
    exit_code: int = -1
    """Exit with this code at the end of the load time; -1 for not at all."""
    exit_log: str = "error: failed to load model"
    oom_at_load: bool = False
    flood_output: int = 0
    """Bytes without a newline that are written to standard output at load."""
    fork_grandchild: bool = False
    # failures of sleep
    refuse_sleep: bool = False
    hang_at_sleep: bool = False
    keep_at_sleep: bool = False
    """Answer that it sleeps, and keep all its memory."""
    refuse_wake: bool = False
    hang_after_wake: bool = False
    """Every generation after its warm-up."""
    # failures while serving
    crash_after_tokens: int = 0
    crash_mid_event: int = 0
    """Exit within the event of the N-th token: half of it has been sent."""
    hang_after_tokens: int = 0
    hang_on_request: int = 0
    hang_from_request: int = 0
    dead_on_request: int = 0
    """Answer this one, and all that follow, as a server whose engine has ended; exit a moment later."""
    health_ok_but_requests_hang: bool = False
    slow_health: float = 0.0
    ignore_sigterm: bool = False
    fail_rate: float = 0.0
    crash_rate: float = 0.0


@dataclass(frozen=True)
class Order:
    """What the body field `fake` asks of one request; what is absent is as the script says."""

    crash: bool = False
    hang: bool = False
    status: int = 0
    tokens: int = 0
    delay: float = 0.0
    tokens_per_second: float = 0.0
    crash_after_tokens: int = 0
    crash_mid_event: int = 0
    hang_after_tokens: int = 0


_ORDER = Order()
_SCRIPT = Script()
_RATES = ("fail_rate", "crash_rate")


def problems(options: Mapping[str, object]) -> list[tuple[str, str]]:
    """What is wrong with a mapping of script options: (path, message) each."""
    return _problems(options, _SCRIPT)


def script_from(options: Mapping[str, object]) -> Script:
    """The script of a checked mapping. Raises ValueError that names the path."""
    return Script(**_checked(options, _SCRIPT))  # type: ignore[arg-type]


def order_from(options: object) -> Order:
    """The order in a request's `fake` field. Raises ValueError that names the path."""
    if not isinstance(options, Mapping):
        raise ValueError("fake: must be an object")
    return Order(**_checked(options, _ORDER))  # type: ignore[arg-type]


def parser() -> argparse.ArgumentParser:
    """The command line: one option per field of Script, and `--script JSON` that they override."""
    result = argparse.ArgumentParser(prog="python -m modelyard.servers.fake", allow_abbrev=False)
    result.add_argument("--address", required=True, help="unix:/path or host:port")
    result.add_argument("--model", required=True)
    result.add_argument("--script", default="{}", help="options as JSON")
    for option in fields(Script):
        default = getattr(_SCRIPT, option.name)
        flag = "--" + option.name.replace("_", "-")
        if isinstance(default, bool):
            result.add_argument(flag, action="store_true", default=None)
        elif option.name in MAPPINGS:
            result.add_argument(flag, action="append", metavar="DEVICE=BYTES")
        elif option.name == "tool_calls":
            result.add_argument(flag, type=json.loads, metavar="JSON")
        elif option.name in ("apis", *LISTS):
            result.add_argument(flag, type=lambda text: [name for name in text.split(",") if name])
        else:
            result.add_argument(flag, type=type(default))
    return result


def parse(argv: Sequence[str]) -> tuple[str, str, Script]:
    """Address, model and script of a command line. Exits with status 2 and a message when it is wrong."""
    arguments = parser()
    given = vars(arguments.parse_args(argv))
    address, model = str(given.pop("address")), str(given.pop("model"))
    try:
        options = json.loads(given.pop("script"))
        options |= {name: value for name, value in given.items() if value is not None}
        for name in MAPPINGS:
            if isinstance(options.get(name), list):
                options[name] = _memory_from(options[name])
        return address, model, script_from(options)
    except (ValueError, TypeError) as error:
        arguments.error(str(error))


def _memory_from(items: Sequence[str]) -> dict[str, int]:
    memory: dict[str, int] = {}
    for item in items:
        device, _, size = item.partition("=")
        if not device or not size.isdigit():
            raise ValueError(f"memory: {item!r} is not DEVICE=BYTES")
        memory[device] = memory.get(device, 0) + int(size)
    return memory


def _checked(options: Mapping[str, object], like: Script | Order) -> dict[str, object]:
    found = _problems(options, like)
    if found:
        raise ValueError("; ".join(f"{path}: {message}" for path, message in found))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _problems(options: Mapping[str, object], like: Script | Order) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in options.items():
        if not hasattr(like, name):
            known = ", ".join(option.name for option in fields(like))
            found.append((name, f"is not an option of the fake engine; there are {known}"))
        elif name in MAPPINGS:
            found += memory_problems(name, value)
        elif name == "tool_calls":
            if not isinstance(value, list | tuple) or not all(_is_call(call) for call in value):
                found.append((name, "must be a list of {name: TEXT, arguments: OBJECT}"))
        elif name == "apis":
            if not isinstance(value, list | tuple) or any(api not in ALL_APIS for api in value):
                found.append((name, f"must be a list of {', '.join(ALL_APIS)}"))
        elif name in LISTS:
            if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                found.append((name, "must be a list of texts"))
        else:
            found += [(name, message) for message in _scalar_problem(name, value, getattr(like, name))]
    return found


def _is_call(value: object) -> bool:
    right = isinstance(value, Mapping) and set(value) == {"name", "arguments"}
    return right and isinstance(value["name"], str) and isinstance(value["arguments"], Mapping)  # type: ignore[index]


def memory_problems(path: str, value: object) -> list[tuple[str, str]]:
    """What is wrong with a mapping of device to bytes, which stands at `path`."""
    if not isinstance(value, Mapping):
        return [(path, "must map a device to bytes, e.g. {ram: 50000000}")]
    return [
        (f"{path}.{device}", "must be a number of bytes, 0 or more")
        for device, size in value.items()
        if not isinstance(size, int) or isinstance(size, bool) or size < 0
    ]


def _scalar_problem(name: str, value: object, default: object) -> list[str]:
    if isinstance(default, bool):
        return [] if isinstance(value, bool) else ["must be true or false"]
    if isinstance(default, str):
        return [] if isinstance(value, str) else ["must be a text"]
    kinds: tuple[type, ...] = (int,) if isinstance(default, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return ["must be a whole number" if kinds == (int,) else "must be a number"]
    assert isinstance(value, int | float)
    if name in _RATES and not 0 <= value <= 1:
        return ["must be between 0 and 1"]
    least = -1 if name == "exit_code" else 1 if name == "slots" else 0
    return [f"must be {least} or more"] if name != "seed" and value < least else []
