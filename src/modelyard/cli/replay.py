"""`modelyard replay` and `modelyard advise`: a trace on a virtual clock, with the models and devices of a
configuration or with made-up ones. No server, no engine and no GPU is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.control import print_json
from modelyard.sim.choices import Format, StrategyName, Theme

if TYPE_CHECKING:
    from rich.progress import Progress

    from modelyard.sim.inputs import Trace
    from modelyard.sim.replay import Run
    from modelyard.sim.scene import Load, Scene

GB = 10**9


def _size(text: str) -> int:
    from modelyard.config import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}") from None


def _seconds(text: str) -> float:
    from modelyard.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}") from None


def _sized(what: str, default: str) -> Any:
    return typer.Option(parser=_size, metavar="SIZE", help=what, show_default=default)


def _lasting(what: str, default: str) -> Any:
    return typer.Option(parser=_seconds, metavar="DURATION", help=what, show_default=default)


@dataclass(frozen=True, slots=True)
class Given:
    """What both commands are given: a trace, and what it is served on."""

    trace: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            help="A CSV (timestamp, input tokens, output tokens), a journal, or an access log; "
            "gzipped or not.",
            show_default=False,
        ),
    ]
    config: Annotated[
        Path | None,
        typer.Option(
            "-c", "--config", help="The configuration: models, devices, policies.", show_default=False
        ),
    ] = None
    kind: Annotated[
        Format | None, typer.Option("--format", help="What the trace is, instead of what it looks like.")
    ] = None
    target: Annotated[float, _lasting("The wait that counts as served well.", "10s")] = 10.0
    limit: Annotated[int, typer.Option(min=1, max=10_000_000, help="Requests that are read at most.")] = (
        100_000
    )
    models: Annotated[int, typer.Option(min=1, max=10_000, help="Without -c: how many models.")] = 24
    memory: Annotated[int, _sized("Without -c: the memory of the one device.", "60GB")] = 60 * GB
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Without -c: sizes that the models have by turns, e.g. 2GB,4GB.", show_default=False
        ),
    ] = None
    slots: Annotated[int, typer.Option(min=1, max=4096, help="Without -c: slots of each model.")] = 8
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="MODEL=SIZE", help="With -c: the memory of a model that is not known."
        ),
    ] = None
    skew: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="Zipf's exponent, for requests that name no model.")
    ] = 1.0
    seed: Annotated[int, typer.Option(help="Of the models that are drawn.")] = 1
    stretch: Annotated[
        float, typer.Option(min=1e-6, max=1e6, help="The trace's times are multiplied by it.")
    ] = 1.0
    load_rate: Annotated[int, _sized("Bytes per second of a load, where that is unknown.", "2GB")] = 2 * GB
    token_in: Annotated[float, _lasting("Of a token in, where service is unknown.", "0.2ms")] = 0.0002
    token_out: Annotated[float, _lasting("Of a token out, where service is unknown.", "10ms")] = 0.010
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False


def _with_given(**defaults: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command, whose first parameter is a `Given`, one with an option for each of its fields: Typer
    reads them from the signature. `defaults` are those that differ."""

    def of(command: Callable[..., None]) -> Callable[..., None]:
        fields = [
            each.replace(default=defaults.get(each.name, each.default))
            for each in signature(Given, eval_str=True).parameters.values()
        ]
        own = list(signature(command, eval_str=True).parameters.values())[1:]

        @wraps(command)
        def run(**values: Any) -> None:
            command(Given(**{each.name: values.pop(each.name) for each in fields}), **values)

        options = [*fields[:2], *own, *fields[2:]]
        run.__signature__ = Signature(options)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in options}
        return run

    return of


@_with_given()
def replay(
    given: Given,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--strategy",
            metavar="NAME",
            help="Only this one; may be repeated: " + ", ".join(f"'{name}'" for name in StrategyName) + ".",
            show_default="all",
        ),
    ] = None,
    bound: Annotated[bool, typer.Option(help="Compute the lower bound of loads, too.")] = True,
    picture: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw it: an .svg, or a .png (needs the extra `plot`)."),
    ] = None,
    theme: Annotated[
        Theme, typer.Option(help="Colours of the picture; auto: as the reader's system has it (SVG).")
    ] = Theme.AUTO,
) -> None:
    """Replay a trace: how each strategy would have served it."""
    from modelyard.cli import results, tables
    from modelyard.sim import plot
    from modelyard.sim.replay import replay as run_replay
    from modelyard.sim.strategies import STRATEGIES

    if picture is not None:
        plot.check(picture)
    found, scene, jobs = _prepared(given)
    chosen = [STRATEGIES[_strategy(name)] for name in dict.fromkeys(strategy or StrategyName)]
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
    if picture is not None:
        plot.write(picture, runs, given.target, title=found.name, theme=theme)
    if given.as_json:
        _print_json(found, scene, jobs, {"strategies": results.as_list(runs, fewest, given.target)})
        return
    console = tables.console()
    results.print_assumed(console, found, jobs, _assumed(found, scene, jobs))
    results.print_runs(console, runs, fewest, given.target)
    if picture is not None:
        console.print(f"drawn: {picture}")


@_with_given(limit=20_000)
def advise(
    given: Given,
    simulations: Annotated[int, typer.Option(min=1, max=500, help="Changes that are tried at most.")] = 24,
) -> None:
    """Say what to change in a configuration, with the gain that a replay of the trace shows for it."""
    from modelyard.cli import results, tables
    from modelyard.sim import advise as advising
    from modelyard.sim.strategies import OURS

    found, scene, jobs = _prepared(given)
    with _progress() as bars:
        task = bars.add_task("as configured", total=simulations + 1)

        def tell(text: str) -> None:
            bars.update(task, advance=1, description=text)

        advice = advising.advise(scene, jobs.jobs, OURS, given.target, simulations, tell)
    if given.as_json:
        _print_json(found, scene, jobs, advice.as_json())
        return
    console = tables.console()
    results.print_assumed(console, found, jobs, _assumed(found, scene, jobs))
    results.print_advice(console, advice, given.target)


# -- what is replayed -----------------------------------------------------------------------------------


def _prepared(given: Given) -> tuple[Trace, Scene, Load]:
    """The trace, what it is served on, and its requests there. Raises TraceError and ConfigErrors."""
    from modelyard.sim import inputs
    from modelyard.sim.scene import load

    trace = inputs.read(given.trace, format=given.kind, limit=given.limit)
    scene = _scene(given, trace)
    jobs = load(trace, scene, seed=given.seed, skew=given.skew, stretch=given.stretch)
    if not jobs.jobs:
        raise inputs.TraceError(f"Nothing of {trace.name} can be replayed: {jobs.assumed[-1]}")
    return trace, scene, jobs


def _scene(given: Given, trace: Trace) -> Scene:
    from modelyard.cli import scenes
    from modelyard.sim.scene import SIZES, Rules, of_journal, synthetic

    rules = Rules(given.token_in, given.token_out, load_rate=max(1, given.load_rate))
    if given.config is not None:
        return scenes.of_config(given.config, _said_sizes(given.size or ()), rules)
    if trace.server is not None:
        return of_journal(trace.server, rules)
    names = trace.models or [f"model-{number}" for number in range(given.models)]
    sizes = [_size(text) for text in given.sizes.split(",")] if given.sizes else SIZES
    return synthetic(names, given.memory, sizes=sizes, slots=given.slots, rules=rules)


def _strategy(text: str) -> StrategyName:
    for name in StrategyName:
        if text.lower() == name.lower():
            return name
    known = ", ".join(f"'{name}'" for name in StrategyName)
    raise typer.BadParameter(f"there is no strategy {text!r}; there are {known}")


def _said_sizes(said: Iterable[str]) -> dict[str, int]:
    sizes = {}
    for text in said:
        model, equals, size = text.rpartition("=")
        if not equals or not model:
            raise typer.BadParameter(f"{text!r} is not MODEL=SIZE, e.g. qwen=8GB")
        sizes[model] = _size(size)
    return sizes


def _assumed(trace: Trace, scene: Scene, jobs: Load) -> list[str]:
    return [*trace.notes, *scene.assumed, *jobs.assumed, str(scene.rules)]


def _progress() -> Progress:
    """What is under way, on stderr, and only for a terminal."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print_json(trace: Trace, scene: Scene, jobs: Load, came: Mapping[str, Any]) -> None:
    about = {
        "name": trace.name,
        "format": trace.format,
        "requests": len(trace.requests),
        "seconds": trace.seconds,
    }
    told = {"trace": about, "assumed": _assumed(trace, scene, jobs), **came}
    print_json(told)
