"""`modelyard plan`: what an order would do, as a table or JSON, and doing exactly that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from modelyard.cli import tables
from modelyard.cli.control import DEFAULT_URL, AsJson, Key, Url, connect
from modelyard.cli.tables import size

Json = Mapping[str, Any]

LISTED = 20  # facts that a plan rests on, as far as they are printed


class Action(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    REQUEST = "request"


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


def plan(
    action: Annotated[
        Action | None, typer.Argument(metavar="load|unload|request", help="What is to be planned.")
    ] = None,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A model's name or alias.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", help="Plan to serve this configuration instead; see `apply`."),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    evict: Annotated[bool, typer.Option(help="load: put others out for it.")] = True,
    now: Annotated[bool, typer.Option("--now", help="unload: cut what runs on it.")] = False,
    priority: Annotated[Priority | None, typer.Option(help="request: its class; else the model's.")] = None,
    max_wait: Annotated[
        float | None, typer.Option(help="request: seconds it may wait; else the model's.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Carry it out, if it still holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what loading, unloading or asking a model, or serving a file, would do, and why; with --apply, do
    exactly that."""
    if (action is None) == (file is None) or (action is None) != (model is None):
        raise typer.BadParameter("name an action and a model, or --file")
    _refuse_foreign(action, evict=not evict, now=now, priority=priority, max_wait=max_wait)
    options: dict[Action, dict[str, Any]] = {
        Action.LOAD: {"evict": evict},
        Action.UNLOAD: {"now": now},
        Action.REQUEST: {"priority": priority, "max_wait": max_wait},
    }
    with connect(url, key) as client:
        if action is not None and model is not None:
            made = client.plan(action.value, model, **options[action])
        else:
            made = client.plan_config(file)
        if not as_json:
            print_plan(tables.console(), made)
        done = client.apply_plan(made["id"]) if apply else None
    if as_json:
        typer.echo(json.dumps({**made, "applied": done}, indent=2, ensure_ascii=False))
    elif done is not None:
        state = "done" if done["done"] else "under way"
        typer.echo(f"{done['order']}: {state} after {done['seconds']:.2f} s")


def _refuse_foreign(action: Action | None, **given: object) -> None:
    """An option of another action is a mistake. Raises BadParameter."""
    all_own = {Action.LOAD: {"evict"}, Action.UNLOAD: {"now"}, Action.REQUEST: {"priority", "max_wait"}}
    own = all_own[action] if action is not None else set()
    for name, value in given.items():
        if value and name not in own:
            raise typer.BadParameter(f"`{action or '--file'}` has no --{name.replace('_', '-')}")


def print_plan(where: Console, made: Json) -> None:
    """The steps of a plan, the memory of each device before and after, and what it rests on."""
    where.print(escape(f"{made['order']} would {_outcome(made)}"), style="bold", soft_wrap=True)
    if not made["steps"]:
        where.print("Nothing would happen.")
    print_steps(where, made)
    moved = (device for device in made["memory"] if device["free"]["before"] != device["free"]["after"])
    for device in moved:
        free = device["free"]
        where.print(
            escape(f"{device['device']}: {size(free['before'])} free now, {size(free['after'])} then")
        )
    rests = made["preconditions"]
    table = tables.new(prose=("holds while", "is", ""))
    for each in rests[:LISTED]:
        table.add_row(escape(each["name"]), escape(each["value"]), escape(each["note"]))
    tables.show(where, table)
    if len(rests) > LISTED:
        where.print(f"… and {len(rests) - LISTED} more, which --json tells.")


def _outcome(made: Json) -> str:
    """How long the order would take, or that it would be refused."""
    refused = _refusal(made)
    if refused is None:
        return f"take about {made['seconds']:.1f} s"
    at = f"{refused['at']:.1f}"
    return f"be refused{'' if at == '0.0' else f' after about {at} s'}: {refused['code']}"


def _refusal(made: Json) -> Json | None:
    """The step in which the order itself is refused, not somebody who waits."""
    action, _, model = made["order"].partition(" ")
    steps, refused = made["steps"], []
    if action == Action.LOAD:
        refused = [step for step in steps if step["does"] == "loaded" and step["code"]]
    elif action == Action.REQUEST and not made["open"] and all(step["does"] != "grant" for step in steps):
        refused = [step for step in steps if step["does"] == "refuse" and step["model"] == model]
    return refused[-1] if refused else None


def print_steps(where: Console, made: Json) -> None:
    """What happens, when and why; nothing where nothing does."""
    table = tables.new("in", "what happens", prose=("why",))
    for step in made["steps"]:
        table.add_row(*map(escape, _row(step)))
    tables.show(where, table)
    for line in made["open"]:
        where.print(escape(f"Not known: {line}."))


def _row(step: Json) -> tuple[str, str, str]:
    memory = ", ".join(f"{size(held)} on {device}" for device, held in step["memory"].items())
    score = step["score"]
    why = step["reason"]
    if "cost" in score:
        spared = f"; spared: {score['spared']}" if "spared" in score else ""
        why += f"; score: {score['standing']}, {score['cost']:.2f}{spared}"
    return f"{step['at']:.1f} s", f"{_what(step)}{f' ({memory})' if memory else ''}", why


def _what(step: Json) -> str:
    who, count = step["instance"] or step["model"], step["requests"]
    requests = f"{count} request{'' if count == 1 else 's'}"
    sentences = {
        "fetch": f"{step['model']}: its files are fetched",
        "start": f"{step['model']} starts, for about {step['seconds']:.1f} s",
        "ready": f"{who} is ready",
        "leave": f"{who} leaves" + (f", {requests} still running" if count else ""),
        "stop": f"{who} stops",
        "gone": f"{who} is gone",
        "fail": f"{who} fails",
        "cut": f"{requests} on {who} cut: {step['code']}",
        "grant": f"the request has a slot of {who}",
        "refuse": f"{requests} for {step['model']} refused: {step['code']}",
        "loaded": f"{step['model']} is not loaded: {step['code']}" if step["code"] else f"{who} is loaded",
    }
    return sentences[step["does"]]
