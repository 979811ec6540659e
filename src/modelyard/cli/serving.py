"""Commands that need no server: serve and demo are one, pull fills the cache, schema and version print."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import modelyard
from modelyard import __version__
from modelyard.errors import ConfigError

if TYPE_CHECKING:
    from modelyard.compose import Yard
    from modelyard.config import Config
    from modelyard.runtime.entries import Progress as FetchProgress

OWN_FOLDER = (
    "the demo's own configuration cannot name one: `XDG_DATA_HOME=FOLDER modelyard demo --port 0` does, "
    "or one of yours, with -c"
)
ConfigFile = Annotated[Path, typer.Option("-c", "--config", help="The configuration.", show_default=False)]
Host = Annotated[str | None, typer.Option(help="The address to listen on, instead of the configured one.")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="The port, instead of the configured one; 0: a free one.")
]


class Part(StrEnum):
    """What `serve` can be held to."""

    TRANSLATION = "translation"


def serve(
    config: ConfigFile,
    host: Host = None,
    port: Port = None,
    watch: Annotated[bool, typer.Option(help="Take a change of the file, or of what it includes.")] = True,
    only: Annotated[
        Part | None,
        typer.Option(help="Serve the models that translate alone; engines of others need not be installed."),
    ] = None,
) -> None:
    """Serve the models of a configuration until Ctrl-C; SIGHUP has it read again."""
    from modelyard.telemetry import log_output

    log_output.configure()
    raise typer.Exit(_run(config, host, port, watch=watch, only=only))


def demo(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Your own models instead of the demo's.")
    ] = None,
    host: Host = None,
    port: Port = None,
) -> None:
    """Serve three small models on this machine, show what happens, and go on serving until Ctrl-C."""
    from rich.console import Console

    from modelyard.cli.tour import Tour
    from modelyard.telemetry import log_output

    log_output.configure(quiet=True)
    tour = Tour(Console(highlight=False))
    try:
        code = _run(config or demo_file(), host, port, on_ready=lambda yard: tour.start(_url(yard)))
    except ConfigError as error:
        if config is None and error.path == "server.data_dir":  # a field of a file that is not the user's
            raise ConfigError("", f"{error.message}\n{OWN_FOLDER}") from error
        raise
    finally:
        tour.stop()
    raise typer.Exit(code)


def demo_file() -> Path:
    """The demo's configuration: it lies in the package when installed, in the checkout when developed."""
    package = Path(modelyard.__file__).parent
    installed = package / "examples" / "demo.yaml"
    return installed if installed.is_file() else package.parents[1] / "examples" / "demo.yaml"


def _listening(config: Config, host: str | None, port: int | None) -> Config:
    """The configuration with the address that the command line names. Raises ConfigError."""
    if host is None and port is None:
        return config
    server = config.server
    if server.unix is not None:
        raise ConfigError("server.unix", "stands instead of --host and --port; leave one of them out")
    server = replace(server, host=host or server.host, port=server.port if port is None else port)
    return replace(config, server=server)


def _translating(config: Config) -> Config:
    """The configuration with the models that translate alone. Raises ConfigError."""
    from modelyard.compose.only import translation

    return translation(config)


def _run(
    path: Path,
    host: str | None,
    port: int | None,
    *,
    watch: bool = True,
    only: Part | None = None,
    on_ready: Callable[[Yard], None] | None = None,
) -> int:
    from modelyard.config import load
    from modelyard.config.reading import FilesRead

    def adjust(config: Config) -> Config:
        listening = _listening(config, host, port)
        return listening if only is None else _translating(listening)

    reading = FilesRead()
    config = adjust(load(path, reading=reading))
    from modelyard import compose, foreground  # only now: a mistake in the file is told half a second sooner

    origin = compose.Origin(path.absolute(), reading, adjust, watch and path.is_file())  # no pipe
    return foreground.serve(config, origin, on_ready=on_ready)


def _url(yard: Yard) -> str:
    address = yard.server.address
    return str(address) if address.path else f"http://{address}"


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or alias.")],
    config: ConfigFile,
) -> None:
    """Fetch the files of a model into the cache, so that its first load need not."""
    import asyncio

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from modelyard.cli import tables
    from modelyard.config import load
    from modelyard.telemetry import log_output

    log_output.configure(quiet=True)
    loaded = load(config)
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(model, total=None)

        def show(step: FetchProgress) -> None:
            bars.update(task, completed=step.done, total=step.total)

        count, total = asyncio.run(_pull(loaded, model, show))
    typer.echo(f"{model} is in the cache: {count} file{'s' * (count != 1)}, {tables.size(total)}")


async def _pull(config: Config, model: str, show: Callable[[FetchProgress], None]) -> tuple[int, int]:
    """The number of files and their bytes."""
    from modelyard import compose

    yard = await compose.build(config)
    try:
        entry = yard.names.resolve(model)
        fetched = await yard.driver.files.fetch(entry, show)
    finally:
        await yard.close()
    return len(fetched), sum(file.size for file in fetched.values())


def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from modelyard.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def version() -> None:
    """Print the version."""
    typer.echo(__version__)
