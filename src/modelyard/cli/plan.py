"""`modelyard plan`: what an order would do, as a table or JSON, and doing exactly that."""

from __future__ import annotations

from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from modelyard.cli.control import DEFAULT_URL, AsJson, Key, Url, connect, print_json


class Action(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    REQUEST = "request"


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


def _finite(seconds: float | None) -> float | None:
    if seconds is not None and not 0 <= seconds < inf:
        raise typer.BadParameter(f"{seconds:g} is not a number of seconds from 0 on")
    return seconds


def plan(
    action: Annotated[
        Action | None, typer.Argument(metavar="load|unload|request", help="What is to be planned.")
    ] = None,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A model's name or alias.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", help="Plan to serve this configuration instead; see `apply`."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="Plan a start with this configuration here, without a server."),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    evict: Annotated[bool, typer.Option(help="load: put others out for it.")] = True,
    now: Annotated[bool, typer.Option("--now", help="unload: cut what runs on it.")] = False,
    priority: Annotated[Priority | None, typer.Option(help="request: its class; else the model's.")] = None,
    max_wait: Annotated[
        float | None,
        typer.Option(callback=_finite, help="request: seconds it may wait; else the model's."),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Carry it out, if it still holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what loading, unloading or asking a model, or serving a file, would do, and why; with --apply, do
    exactly that."""
    if sum(each is not None for each in (action, file, config)) != 1 or (action is None) != (model is None):
        raise typer.BadParameter("name an action and a model, or --file, or --config")
    if config is not None and apply:
        raise typer.BadParameter("nothing is served that --apply could change: use `serve`")
    _refuse_foreign(action, evict=not evict, now=now, priority=priority, max_wait=max_wait)
    options: dict[Action, dict[str, Any]] = {
        Action.LOAD: {"evict": evict},
        Action.UNLOAD: {"now": now},
        Action.REQUEST: {"priority": priority, "max_wait": max_wait},
    }
    if config is not None:
        made = _without_server(config)
        _show(made, as_json=as_json)
        if not as_json:
            typer.echo(_fits(made))
        return
    with connect(url, key) as client:
        if action is not None and model is not None:
            made = client.plan(action.value, model, **options[action])
        else:
            made = client.plan_config(file)
        if not as_json:
            _show(made, as_json=False)
        done = client.apply_plan(made["id"]) if apply else None
    if as_json:
        print_json({**made, "applied": done})
    elif done is not None:
        state = "done" if done["done"] else "under way"
        typer.echo(f"{done['order']}: {state} after {done['seconds']:.2f} s")


def _without_server(path: Path) -> dict[str, Any]:
    """The plan of a start with this configuration."""
    import asyncio

    from modelyard.compose.offline import plan_of
    from modelyard.config import load
    from modelyard.gateway.kept_plans import Kept
    from modelyard.gateway.plan import view_of
    from modelyard.telemetry import log_output

    log_output.configure(quiet=True)
    made = Kept(f"serve {path.name}", asyncio.run(plan_of(load(path))))
    return view_of(made).model_dump(mode="json", by_alias=True, exclude={"id", "preconditions"})


def _fits(made: dict[str, Any]) -> str:
    """Whether all of it is in memory at once."""
    steps = made["steps"]
    refused = dict.fromkeys(step["model"] for step in steps if step["does"] == "loaded" and step["code"])
    if refused:
        return f"Not all of it is loaded: {', '.join(refused)} cannot be beside the others."
    left = dict.fromkeys(f"{step['model']} for {step['for']}" for step in steps if step["does"] == "leave")
    if left:
        return f"Not all of it fits at once: who is not in use leaves ({', '.join(left)})."
    known = "As far as is known, all" if made["open"] else "All"
    return f"{known} of it fits at once: nobody has to leave for another."


def _show(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    from modelyard.cli import plan_tables, tables

    plan_tables.print_plan(tables.console(), made)


def _refuse_foreign(action: Action | None, **given: object) -> None:
    """An option of another action is a mistake. Raises BadParameter."""
    all_own = {Action.LOAD: {"evict"}, Action.UNLOAD: {"now"}, Action.REQUEST: {"priority", "max_wait"}}
    own = all_own[action] if action is not None else set()
    for name, value in given.items():
        if value and name not in own:
            raise typer.BadParameter(f"`{action or '--file'}` has no --{name.replace('_', '-')}")
