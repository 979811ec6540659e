"""`modelyard replay` and `modelyard advise`: a trace on a virtual clock, with the models and devices of a
configuration or with made-up ones. No server, no engine and no GPU is touched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from modelyard.cli import results, scenes, tables
from modelyard.config import parse_duration, parse_size
from modelyard.sim import advise as advising
from modelyard.sim import inputs, plot
from modelyard.sim.logs import FORMATS
from modelyard.sim.replay import Run
from modelyard.sim.replay import replay as run_replay
from modelyard.sim.scene import GB, SIZES, Load, Rules, Scene, load, of_journal, synthetic
from modelyard.sim.strategies import OURS, STRATEGIES, Strategy

Format = StrEnum("Format", {name.upper(): name for name in FORMATS})  # type: ignore[misc]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}") from None


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}") from None


TraceFile = Annotated[
    Path,
    typer.Argument(
        metavar="TRACE",
        help="A CSV (timestamp, input tokens, output tokens), a journal, or an access log; gzipped or not.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="The configuration: models, devices, policies.", show_default=False),
]
Kind = Annotated[
    Format | None, typer.Option("--format", help="What the trace is, instead of what it looks like.")
]
Target = Annotated[
    float,
    typer.Option(
        parser=_seconds, metavar="DURATION", help="The wait that counts as served well.", show_default="10s"
    ),
]
Limit = Annotated[int, typer.Option(min=1, max=10_000_000, help="Requests that are read at most.")]
Models = Annotated[int, typer.Option(min=1, max=10_000, help="Without -c: how many models.")]
Memory = Annotated[
    int,
    typer.Option(
        parser=_size,
        metavar="SIZE",
        help="Without -c: the memory of the one device.",
        show_default="60GB",
    ),
]
Sizes = Annotated[
    str | None,
    typer.Option(help="Without -c: sizes that the models have by turns, e.g. 2GB,4GB.", show_default=False),
]
Slots = Annotated[int, typer.Option(min=1, max=4096, help="Without -c: slots of each model.")]
Said = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="MODEL=SIZE", help="With -c: the memory of a model that is not known."),
]
Skew = Annotated[
    float, typer.Option(min=0.0, max=10.0, help="Zipf's exponent, for requests that name no model.")
]
Seed = Annotated[int, typer.Option(help="Of the models that are drawn.")]
Stretch = Annotated[float, typer.Option(min=1e-6, max=1e6, help="The trace's times are multiplied by it.")]
LoadRate = Annotated[
    int,
    typer.Option(
        parser=_size,
        metavar="SIZE",
        help="Bytes per second of a load, where that is unknown.",
        show_default="2GB",
    ),
]
TokenIn = Annotated[
    float,
    typer.Option(
        parser=_seconds,
        metavar="DURATION",
        help="Of a token in, where service is unknown.",
        show_default="0.2ms",
    ),
]
TokenOut = Annotated[
    float,
    typer.Option(
        parser=_seconds,
        metavar="DURATION",
        help="Of a token out, where service is unknown.",
        show_default="10ms",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

SIXTY = 60 * GB


def replay(
    trace: TraceFile,
    config: ConfigFile = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--strategy",
            metavar="NAME",
            help=f"Only this one; may be repeated: {', '.join(repr(name) for name in STRATEGIES)}.",
            show_default="all",
        ),
    ] = None,
    kind: Kind = None,
    target: Target = 10.0,
    limit: Limit = inputs.LIMIT,
    models: Models = 24,
    memory: Memory = SIXTY,
    sizes: Sizes = None,
    slots: Slots = 8,
    size: Said = None,
    skew: Skew = 1.0,
    seed: Seed = 1,
    stretch: Stretch = 1.0,
    load_rate: LoadRate = 2 * GB,
    token_in: TokenIn = 0.0002,
    token_out: TokenOut = 0.010,
    bound: Annotated[bool, typer.Option(help="Compute the lower bound of loads, too.")] = True,
    picture: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw it: an .svg, or a .png (needs the extra `plot`)."),
    ] = None,
    theme: Annotated[
        plot.Theme, typer.Option(help="Colours of the picture; auto: as the reader's system has it (SVG).")
    ] = plot.Theme.AUTO,
    as_json: AsJson = False,
) -> None:
    """Replay a trace: how each strategy would have served it."""
    if picture is not None:
        plot.check(picture)
    found = inputs.read(trace, format=kind, limit=limit)
    rules = Rules(token_in, token_out, load_rate=max(1, load_rate))
    scene = _scene(config, found, models, memory, sizes, slots, size, rules)
    jobs = _jobs(found, scene, seed, skew, stretch)
    chosen = [_strategy(name) for name in dict.fromkeys(strategy or STRATEGIES)]
    runs: list[Run] = []
    fewest: list[int | None] = []
    with _progress() as bars:
        for one in chosen:
            task = bars.add_task(one.name, total=max(1.0, jobs.jobs[-1].at))
            runs.append(
                run_replay(
                    scene,
                    jobs.jobs,
                    one,
                    lambda at, task=task: bars.update(task, completed=at),  # type: ignore[misc]
                )
            )
            fewest.append(runs[-1].fewest_loads() if bound else None)
            bars.remove_task(task)
    assumed = _assumed(found, scene, jobs)
    if picture is not None:
        plot.write(picture, runs, target, title=found.name, theme=theme)
    if as_json:
        _print_json(
            {
                "trace": _about(found),
                "assumed": assumed,
                "strategies": results.as_list(runs, fewest, target),
            }
        )
        return
    console = tables.console()
    results.print_assumed(console, found, jobs, assumed)
    results.print_runs(console, runs, fewest, target)
    if picture is not None:
        console.print(f"drawn: {picture}")


def advise(
    trace: TraceFile,
    config: ConfigFile = None,
    kind: Kind = None,
    target: Target = 10.0,
    limit: Limit = 20_000,
    models: Models = 24,
    memory: Memory = SIXTY,
    sizes: Sizes = None,
    slots: Slots = 8,
    size: Said = None,
    skew: Skew = 1.0,
    seed: Seed = 1,
    stretch: Stretch = 1.0,
    load_rate: LoadRate = 2 * GB,
    token_in: TokenIn = 0.0002,
    token_out: TokenOut = 0.010,
    simulations: Annotated[int, typer.Option(min=1, max=500, help="Changes that are tried at most.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Say what to change in a configuration, with the gain that a replay of the trace shows for it."""
    found = inputs.read(trace, format=kind, limit=limit)
    rules = Rules(token_in, token_out, load_rate=max(1, load_rate))
    scene = _scene(config, found, models, memory, sizes, slots, size, rules)
    jobs = _jobs(found, scene, seed, skew, stretch)
    with _progress() as bars:
        task = bars.add_task("as configured", total=simulations + 1)

        def tell(text: str) -> None:
            bars.update(task, advance=1, description=text)

        advice = advising.advise(scene, jobs.jobs, OURS, target, simulations, tell)
    assumed = _assumed(found, scene, jobs)
    if as_json:
        _print_json({"trace": _about(found), "assumed": assumed, **advice.as_json()})
        return
    console = tables.console()
    results.print_assumed(console, found, jobs, assumed)
    results.print_advice(console, advice, target)


# -- what is replayed -----------------------------------------------------------------------------------


def _scene(
    config: Path | None,
    trace: inputs.Trace,
    models: int,
    memory: int,
    sizes: str | None,
    slots: int,
    said: Sequence[str] | None,
    rules: Rules,
) -> Scene:
    if config is not None:
        return scenes.of_config(config, _said_sizes(said or ()), rules)
    if trace.yard is not None:
        return of_journal(trace.yard, rules)
    names = trace.models or [f"model-{number}" for number in range(models)]
    chosen = [_size(text) for text in sizes.split(",")] if sizes else SIZES
    return synthetic(names, memory, sizes=chosen, slots=slots, rules=rules)


def _strategy(name: str) -> Strategy:
    for known, strategy in STRATEGIES.items():
        if name.lower() == known.lower():
            return strategy
    raise typer.BadParameter(f"there is no strategy {name!r}; there are {', '.join(map(repr, STRATEGIES))}")


def _said_sizes(said: Iterable[str]) -> dict[str, int]:
    sizes = {}
    for text in said:
        model, equals, size = text.rpartition("=")
        if not equals or not model:
            raise typer.BadParameter(f"{text!r} is not MODEL=SIZE, e.g. qwen=8GB")
        sizes[model] = _size(size)
    return sizes


def _jobs(trace: inputs.Trace, scene: Scene, seed: int, skew: float, stretch: float) -> Load:
    jobs = load(trace, scene, seed=seed, skew=skew, stretch=stretch)
    if not jobs.jobs:
        raise inputs.TraceError(f"Nothing of {trace.name} can be replayed: {jobs.assumed[-1]}")
    return jobs


def _assumed(trace: inputs.Trace, scene: Scene, jobs: Load) -> list[str]:
    return [*trace.notes, *scene.assumed, *jobs.assumed, str(scene.rules)]


def _about(trace: inputs.Trace) -> dict[str, Any]:
    return {
        "name": trace.name,
        "format": trace.format,
        "requests": len(trace.requests),
        "seconds": trace.seconds,
    }


def _progress() -> Progress:
    """What is under way, on stderr, and only for a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
