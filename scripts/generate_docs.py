"""Writes the documents that are drawn from the code, or with --check says which of them are out of date.

Run by `make docs` and `make check`. The same code gives the same text, byte for byte: nothing here depends on
time, machine, terminal or the order of a set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from http_page import http_page
from modelyard import cli, errors
from modelyard.config import Limits, json_schema
from modelyard.config.values import ServerSetting
from modelyard.core import lifecycle
from modelyard.core.types import Policy
from modelyard.engines import ctranslate2, llamacpp_options, transformers, vllm_options
from modelyard.engines.options import Option
from modelyard.telemetry.metrics import DECLARED
from tables import NOTICE, code, default_of, own_docstring, shown, table, type_of

ROOT = Path(__file__).resolve().parent.parent
S = TypeVar("S", bound=StrEnum)
T = TypeVar("T", bound=StrEnum)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/generate_docs.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 when a document is stale")
    check = parser.parse_args(argv).check
    stale = []
    for name, render in DOCUMENTS.items():
        path, text = ROOT / name, render()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for name in stale:
        print(f"{name} is out of date: run make docs" if check else f"wrote {name}")
    return 1 if check and stale else 0


# -- errors ---------------------------------------------------------------------------------------------


def error_page() -> str:
    """Every error code, ordered by status, then by code."""
    ordered = sorted(errors.BY_CODE.values(), key=lambda error: (error.status, error.code))
    rows = [
        [
            code(error.code),
            str(error.status),
            code(error.kind),
            "yes" if error.retryable else "no",
            own_docstring(error),
        ]
        for error in ordered
    ]
    return f"""{NOTICE}
# Errors

`error.code` is stable; `message` says what is wrong, where, and what to do. "Retry" says whether the same
request may succeed later: `Retry-After` then says when, where that is known; else `x-should-retry: false` is
sent. `config_error` stops the start and never reaches a client.

{table(["code", "status", "type", "retry", "meaning"], rows)}"""


# -- lifecycle ------------------------------------------------------------------------------------------


def lifecycle_page() -> str:
    """Both state machines, as diagrams and as tables."""
    return f"""{NOTICE}
# Lifecycle

Two tables in `core/lifecycle.py` hold every transition that there is; a pair that is not in its table raises
and changes nothing. Commands are imperative (drain, stop), reports are past (readied, exited). Memory is
reserved when an instance starts and freed only when it was released: a process that exited may still hold it.

## Files of a version

{_machine(lifecycle.FILES, "absent", "")}
## Instance

Where its engine offers a way to sleep, an instance that has drained may sleep instead of stopping: its
process stays, and most of its memory is given back.

{_machine(lifecycle.INSTANCE, "starting", "gone")}"""


def _machine(moves: Mapping[tuple[S, T], S], first: str, last: str) -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    signals: dict[tuple[str, str], list[str]] = {}
    for (state, signal), after in moves.items():
        signals.setdefault((state.value, after.value), []).append(signal.value)
    lines += [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in signals.items()]
    lines += [f"    {last} --> [*]"] if last else []
    rows = [[state.value, signal.value, after.value] for (state, signal), after in moves.items()]
    return "\n".join([*lines, "```", "", table(["state", "signal", "becomes"], rows)])


# -- metrics --------------------------------------------------------------------------------------------


def metrics_page() -> str:
    """Every metric of `/metrics`, in the order of the page."""
    rows = [[code(one.name), one.kind.value, ", ".join(map(code, one.labels)), one.help] for one in DECLARED]
    bounds = "".join(
        f"- `{one.name}`: {', '.join(f'{bound:g}' for bound in one.buckets)}\n"
        for one in DECLARED
        if one.buckets
    )
    return f"""{NOTICE}
# Metrics

Served at `/metrics` in Prometheus' text format. Seconds, bytes and tokens; labels hold names of configured
models and words from closed lists, never text of a client.

{table(["metric", "type", "labels", "meaning"], rows)}
## Bounds of the histograms, in seconds

{bounds}"""


# -- configuration --------------------------------------------------------------------------------------


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


_REAL = {"Policy": Policy(), "Server": ServerSetting(Path()), "Limits": Limits()}


def config_page() -> str:
    """Every field of the YAML file, section by section, from the JSON Schema."""
    schema = json_schema()
    policy = schema["$defs"]["PolicySection"]["properties"]
    sections = [_section("The file", schema)]
    for name, definition in sorted(schema["$defs"].items()):
        if name == "ModelSection":
            told = "And every field of [Policy](#policy)."
            sections.append(_section("Model", definition, told, policy))
        else:
            sections.append(_section(name.removesuffix("Section"), definition))
    return f"""{NOTICE}
# Configuration

One YAML file, or several through `include`. Sizes take `GB` (10⁹) and `GiB` (2³⁰), durations `ms`, `s`, `m`
and `h`; a number alone is bytes or seconds. `${{NAME}}` and `${{NAME:-default}}` are filled from the
environment. Editors can use [config.schema.json](config.schema.json).

{"".join(sections)}## Parameters of `llamacpp`

What may stand under `parameters` of a model with this engine; a dot goes into a mapping (`kv: {{k: q8_0}}`).
`context` is what each slot gets, 0 for what the model was trained for; `gpu_layers` is `all` when the model
may use a GPU, else 0. A model lies on one GPU, any of those that it may use; it is split over several when
`tensor_split` gives their parts, or when its `devices` names several: then over all of these. With
`split_mode: none` it lies on one, and `main_gpu` counts those in `devices` from 0.

{_options("llama-server", llamacpp_options.OPTIONS)}
## Parameters of `vllm`

`context` is what a request may take, 0 for what the model was trained for; the cache holds that for each of
`slots`, unless `kv_cache_mib` says how much each device gives it. `lora` is one adapter with which every
request is computed. See [vLLM](../how-to/vllm.md).

{_options("vllm serve", vllm_options.OPTIONS)}
## Parameters of `transformers`

`context` is what each slot gets, 0 for what the model was made for; at most `batch` tokens are computed at
once. With `translation` it is a model that translates, of which `beam_size` and `max_output` are, too. See
[Transformers](../how-to/transformers.md) and [translation models](../how-to/ctranslate2.md).

{_options("", transformers.OPTIONS)}
## Parameters of `ctranslate2`

`compute_type: auto` is int8 on the CPU and float16 on a GPU. At most `max_batch_tokens` (2,048) tokens of
sentences are translated at once by each of `replicas`, the first of which waits `max_wait_ms` (4) for others.
See [translation models](../how-to/ctranslate2.md).

{_options("", ctranslate2.OPTIONS)}"""


def _options(program: str, options: Iterable[Option]) -> str:
    # What a check says of a value that it cannot take is what it takes.
    rows = (
        [code(option.name), option.check(object()).removeprefix("must be "), code(option.flag)]
        for option in options
    )
    head = ["parameter", "takes", f"flag of {program}"]
    return table(head, rows) if program else table(head[:2], (row[:2] for row in rows))


def _section(title: str, definition: Mapping[str, Any], told: str = "", without: Collection[str] = ()) -> str:
    required, real = definition.get("required", []), _REAL.get(title)
    rows = [
        [
            code(name),
            type_of(field),
            "required" if name in required else shown(getattr(real, name, None)) or default_of(field),
            field.get("description", ""),
        ]
        for name, field in definition.get("properties", {}).items()
        if name not in without
    ]
    head = f"## {title}\n\n{told}\n\n" if told else f"## {title}\n\n"
    return f"{head}{table(['field', 'type', 'default', 'meaning'], rows)}\n"


# -- command line ---------------------------------------------------------------------------------------


def cli_page() -> str:
    """Every command with its arguments and options, as typer itself documents them."""
    command = [sys.executable, "-m", "typer", "modelyard.cli", "utils", "docs"]
    done = subprocess.run(
        [*command, "--name", "modelyard", "--title", "Command line"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
    )
    return f"{NOTICE}\n{done.stdout.strip()}\n"


DOCUMENTS: dict[str, Callable[[], str]] = {
    "docs/reference/errors.md": error_page,
    "docs/reference/http.md": http_page,
    "docs/design/lifecycle.md": lifecycle_page,
    "docs/reference/metrics.md": metrics_page,
    "docs/reference/config.md": config_page,
    "docs/reference/config.schema.json": schema_text,
}
if hasattr(cli, "app"):
    DOCUMENTS["docs/reference/cli.md"] = cli_page

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
