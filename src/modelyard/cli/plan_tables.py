"""What a plan would do, and what another configuration changes, as tables for people. See `cli/tables.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape

from modelyard.cli.tables import Json, new, show, size

LISTED = 20  # facts that a plan rests on, as far as they are printed
KINDS = {"added": "green", "removed": "red", "replaced": "yellow"}


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
    if not (rests := made.get("preconditions")):
        return
    table = new(prose=("holds while", "is", ""))
    for each in rests[:LISTED]:
        table.add_row(escape(each["name"]), escape(each["value"]), escape(each["note"]))
    show(where, table)
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
    if action == "load":
        refused = [step for step in steps if step["does"] == "loaded" and step["code"]]
    elif action == "request" and not made["open"] and all(step["does"] != "grant" for step in steps):
        refused = [step for step in steps if step["does"] == "refuse" and step["model"] == model]
    return refused[-1] if refused else None


def print_steps(where: Console, made: Json) -> None:
    """What happens, when and why; nothing where nothing does."""
    table = new("in", "what happens", prose=("why",))
    for step in made["steps"]:
        table.add_row(*map(escape, _row(step)))
    show(where, table)
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
        "leave": f"{who} {'goes to sleep' if 'rung' in step['score'] else 'leaves'}"
        + (f", {requests} still running" if count else ""),
        "stop": f"{who} stops",
        "sleep": f"{who} goes to sleep",
        "asleep": f"{who} is asleep",
        "wake": f"{who} wakes, for about {step['seconds']:.1f} s",
        "gone": f"{who} is gone",
        "fail": f"{who} fails",
        "cut": f"{requests} on {who} cut: {step['code']}",
        "grant": f"the request has a slot of {who}",
        "refuse": f"{requests} for {step['model']} refused: {step['code']}",
        "loaded": f"{step['model']} is not loaded: {step['code']}" if step["code"] else f"{who} is loaded",
    }
    return sentences[step["does"]]


def print_change(where: Console, change: Json) -> None:
    """What becomes of each model, then every other setting."""
    if not change["models"] and not change["settings"]:
        where.print(escape(f"{change['source']} says what is served already."), soft_wrap=True)
        return
    table = new("what", "change", prose=("from → to",))
    for model in change["models"]:
        kind = model["kind"]
        style = KINDS.get(kind)
        table.add_row(escape(model["model"]), f"[{style}]{kind}[/]" if style else kind, _fields(model))
    for setting in change["settings"]:
        table.add_row(escape(setting["path"]), "set", escape(_values(setting)))
    show(where, table)
    if change["plan"] is not None:
        print_steps(where, change["plan"])
    done = "is served now" if change["applied"] else "is not served yet; `modelyard apply` does that"
    where.print(escape(f"{change['source']} {done}."), soft_wrap=True)


def _fields(model: Json) -> str:
    lines = [f"{field['path']}: {_values(field)}" for field in model["fields"]]
    if model["running"]:
        lines.append(f"{model['running']} running finish on what goes")
    return escape("\n".join(lines))


def _values(field: Json) -> str:
    return f"{written(field['before'])} → {written(field['after'])}"


def written(value: object) -> str:
    """As it would be written."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return ", ".join(written(item) for item in value) or "-"
    return str(value)
