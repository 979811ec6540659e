"""The command line: `modelyard serve`, `demo`, `ps`, `load`, `explain` … and their one entry, `main`.

Commands that talk to a server use `modelyard.client` as anybody would. An error is one line on stderr and
exit code 1; wrong usage is exit code 2.
"""

from __future__ import annotations

import io
import sys

import typer

from modelyard.cli import (
    cache,
    changes,
    control,
    engines,
    importing,
    installed,
    keys,
    migrate,
    plan,
    registry,
    replay,
    serving,
)
from modelyard.cli.quantizing import quantize
from modelyard.cli.usage import usage
from modelyard.errors import ModelyardError

__all__ = ["app", "main"]

app = typer.Typer(
    name="modelyard",
    help="One address in front of many language models, on few GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serving.serve)
app.command("demo")(serving.demo)
app.command("pull")(serving.pull)
app.command("quantize")(quantize)
app.command("ps")(control.ps)
app.command("devices")(control.devices)
app.command("load")(control.load)
app.command("unload")(control.unload)
app.command("fence")(control.fence)
app.command("unfence")(control.unfence)
app.command("logs")(control.logs)
app.command("explain")(control.explain)
app.command("get")(registry.get)
app.command("describe")(registry.describe)
app.command("versions")(registry.versions)
app.command("register")(registry.register)
app.command("set")(registry.set_policy)
app.command("promote")(registry.promote)
app.command("rollback")(registry.rollback)
app.command("rm")(registry.rm)
app.command("tag")(registry.tag)
app.command("prefetch")(registry.prefetch)
app.command("usage")(usage)
app.command("plan")(plan.plan)
app.command("replay")(replay.replay)
app.command("advise")(replay.advise)
app.command("diff")(changes.diff)
app.command("apply")(changes.apply)
app.command("engines")(installed.engines)
app.add_typer(cache.app)
app.add_typer(engines.app)
app.add_typer(importing.app)
app.add_typer(keys.app)
app.add_typer(migrate.app)
app.command("schema")(serving.schema)
app.command("version")(serving.version)


def main() -> None:
    """Run the command line; exits."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal's encoding lacks is shown as `?`
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except ModelyardError as error:
        sys.stderr.write(f"modelyard: {error}\n")
        sys.exit(1)
