"""`modelyard import`: a configuration made from another server's set-up."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.errors import ConfigError

if TYPE_CHECKING:
    from modelyard.importing.imported import Imported

Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The configuration to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
OUTPUT = Path("modelyard.yaml")

app = typer.Typer(
    name="import", help="Make a configuration from another server's set-up.", no_args_is_help=True
)


@app.command("llama-swap")
def llama_swap_(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="llama-swap's configuration.")],
    output: Output = OUTPUT,
    force: Force = False,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="It is for another machine: do not look for files here.")
    ] = False,
) -> None:
    """Import the llama-server commands of a llama-swap configuration."""
    from modelyard.importing import llama_swap

    imported = llama_swap.read(config, os.environ, elsewhere=elsewhere)
    if output.exists() and output.samefile(config):  # also by another name of it
        raise ConfigError("", f"{output} is what is imported; name another file with -o")
    mode = stat.S_IMODE(config.stat().st_mode)  # what was for few eyes stays so
    _finish(imported, output, mode, force=force, elsewhere=elsewhere)


@app.command("ollama")
def ollama_(
    store: Annotated[
        Path | None, typer.Option(help="The model store; OLLAMA_MODELS, or ~/.ollama/models.")
    ] = None,
    output: Output = OUTPUT,
    force: Force = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compute the digest of every file.")] = False,
) -> None:
    """Import the models of Ollama's store, which are used where they lie."""
    from modelyard.importing import ollama

    imported = ollama.read(store or ollama.default_store(os.environ), verify=verify)
    _finish(imported, output, 0o644, force=force, elsewhere=False)


def _finish(imported: Imported, output: Path, mode: int, *, force: bool, elsewhere: bool) -> None:
    """Write the configuration, and say what is in it and what is not."""
    from modelyard.importing import written

    if output.exists() and not force:  # before a long look at files; `save` looks again
        raise ConfigError("", f"{output} is there already; name another file, or say --force")
    try:
        text = written.text_of(imported, output.absolute(), os.environ, elsewhere=elsewhere)
    except ConfigError:
        typer.echo(written.report(imported))
        raise
    written.save(text, output, mode, force=force)
    typer.echo(f"{output}: {len(imported.models)} of {imported.found} models: {', '.join(imported.models)}")
    typer.echo(written.report(imported))
    typer.echo(f"\nRead it, then: modelyard serve -c {output}")
