"""`modelyard quantize`: make a quantized file in the store, and tell what it is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from modelyard.config import Config
    from modelyard.engines.base import ModelFile
    from modelyard.runtime.entries import Entry, Progress


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="A model's name, or a GGUF file.")],
    type: Annotated[str, typer.Argument(metavar="TYPE", help="q8_0, q4_0, q4_k_m, ...")],
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="The configuration; a file needs none.")
    ] = None,
    check: Annotated[bool, typer.Option(help="Load both files and compare them.")] = True,
) -> None:
    """Make a quantized file of a model's file, as `quantize:` does, and compare the two."""
    import asyncio

    from rich.console import Console

    from modelyard.cli import tables
    from modelyard.config import load
    from modelyard.store import quantize as quantization
    from modelyard.telemetry import log_output

    log_output.configure(quiet=True)
    type, file = type.lower(), Path(model) if Path(model).is_file() else None
    if problem := quantization.problem(type):
        raise ConfigError("TYPE", problem)
    if config is None and file is None:
        raise ConfigError("MODEL", f"{model} is no file; for a model of a configuration name that with -c")
    console = Console(highlight=False)
    before, after = asyncio.run(_made(load(config), model, file, type, console))
    tool = quantization.tool_for(type)
    assert tool is not None
    typer.echo(f"{before.path}")
    typer.echo(f"  as {type}, made by {tool.name} {tool.version}: {after.path}")
    typer.echo(f"  {tables.size(before.size)} -> {tables.size(after.size)} ({after.size / before.size:.0%})")
    if was := quantization.requantized_from(after.header):
        typer.echo(f"  requantized: it was {was} already; made of the original, it would be better")
    if check:
        _compare(before.path, after.path, console)


async def _made(
    config: Config, model: str, file: Path | None, type: str, console: Console
) -> tuple[ModelFile, ModelFile]:
    """The file itself, or that of the model, fetched if need be; and the quantized one."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    from modelyard import compose
    from modelyard.runtime.entries import Entry

    yard = await compose.build(config)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bars = Bars(*columns, console=console, disable=not console.is_terminal)
    try:
        entry = _of_file(file) if file is not None else yard.names.resolve(model)
        if "model" not in entry.engine.sources(entry.spec):
            raise ConfigError("MODEL", f"{model} has no file that could be quantized")
        with bars:

            async def fetched(wanted: str) -> ModelFile:
                task = bars.add_task(wanted or "the file itself", total=None)
                one = Entry(replace(entry.spec, quantize=wanted), entry.policy, entry.engine, entry.profile)

                def show(step: Progress) -> None:
                    bars.update(task, completed=step.done, total=step.total)

                return (await yard.driver.files.fetch(one, show))["model"]

            return await fetched(""), await fetched(type)
    finally:
        await yard.close()


def _of_file(path: Path) -> Entry:
    from modelyard.core.types import Policy, Spec
    from modelyard.engines import registry
    from modelyard.engines.base import Profile
    from modelyard.runtime.entries import Entry

    spec = Spec(path.name, "", "llamacpp", str(path.absolute()))
    return Entry(spec, Policy(), registry.load()["llamacpp"], Profile("llamacpp", "llamacpp"))


def _compare(before: Path, after: Path, console: Console) -> None:
    from modelyard.cli.perplexity import check

    with console.status("loading") as status:
        found = check({"before": before, "after": after}, status.update)
    old, new = found["before"], found["after"]
    typer.echo(f"  it loads and generates: {new.words!r}")
    change = new.perplexity / old.perplexity - 1
    typer.echo(
        f"  perplexity on {new.tokens} tokens of English prose: {old.perplexity:.2f} -> {new.perplexity:.2f} "
        f"({change:+.1%})"
    )
