"""Models, versions and tasks as tables for people. See `cli/tables.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from modelyard.cli.plan_tables import written
from modelyard.cli.tables import STYLES, Json, new, show, size

SHORT = 12  # digits of a digest


def print_models(where: Console, models: Iterable[Json]) -> None:
    table = new("model", "state", "version", "engine", "context", "owner", prose=("can", "also known as"))
    for model in models:
        ours = model["modelyard"]
        known = ours["registered"]
        table.add_row(
            escape(model["id"]),
            _state(ours["state"]),
            str(known["number"]) if known else "-",
            ours["engine"],
            str(ours["context"] or "-"),
            ours["owner"],
            escape(", ".join(ours["capabilities"])),
            escape(", ".join(ours["aliases"])),
        )
    show(where, table)


def print_model(where: Console, model: Json) -> None:
    """Everything of one model, a line each."""
    ours = model["modelyard"]
    known = ours["registered"] or {}
    where.print(escape(model["id"]), style="bold")
    lines: dict[str, object] = {
        "description": known.get("description"),
        "state": ours["state"],
        "error": ours["error"],
        "version": ours["version"],
        "number": known.get("number"),
        "current": known.get("current"),
        "previous": known.get("previous"),
        "tags": ", ".join(f"{tag} = {number}" for tag, number in known.get("tags", {}).items()),
        "revision": known.get("revision"),
        "owner": f"{ours['owner']} {model['place']}".strip(),
        "engine": ours["engine"],
        "can": ours["capabilities"],
        "context": ours["context"],
        "slots": ours["slots"],
        "aliases": ours["aliases"],
        "changed": _moment(known.get("changed")),
    }
    _print_fields(where, "", lines)
    files = ours["files"] or {}
    _print_fields(where, "files", {**files, "size": size(files.get("size"))})
    _print_fields(where, "spec", model["spec"] or {})
    _print_fields(where, "policy", model["policy"])
    _print_fields(where, "artifacts", {one["path"]: _file(one) for one in model.get("artifacts") or ()})
    _print_fields(where, "policies", {f"{one['number']}": _history(one) for one in model.get("policies", ())})


def _file(file: Json) -> str:
    made_from = f"made from {file['made_from'][:SHORT]}" if file["made_from"] else ""
    said = (size(file["size"]), file["sha256"][:SHORT], file["licence"], file["source"], made_from)
    return ", ".join(filter(None, said))


def _history(policy: Json) -> str:
    fields = (f"{name}: {written(value)}" for name, value in policy["policy"].items())
    return f"{_moment(policy['created'])} {policy['created_by']} {{{', '.join(fields)}}}"


def _print_fields(where: Console, title: str, fields: Mapping[str, Any]) -> None:
    if title and fields:
        where.print(f"[bold]{title}[/]")
    for name, value in _leaves("", fields):
        shown = written(value)
        if shown != "-":
            where.print(escape(f"  {name:<20} {shown}"), soft_wrap=True)


def _leaves(path: str, value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(f"{path}.{name}" if path else str(name), item)
    else:
        yield path, value


def print_versions(where: Console, versions: Iterable[Json]) -> None:
    table = new("version", "", "digest", "files", "size", "made", "by", "tags", prose=("source", "note"))
    for version in versions:
        table.add_row(
            str(version["number"]),
            "[green]current[/]" if version["current"] else "",
            version["digest"][:SHORT],
            _state(version["state"]),
            size((version["capabilities"]["files"] or {}).get("size")),
            _moment(version["created"]),
            escape(version["created_by"]),
            escape(", ".join(version["tags"])),
            escape(str(version["spec"].get("source") or "-")),
            escape(version["detail"]),
        )
    show(where, table)


def print_comparison(where: Console, found: Json) -> None:
    if not found["fields"]:
        where.print(escape(f"{found['model']}: {found['from']} and {found['to']} do not differ."))
        return
    table = new("field", prose=(str(found["from"]), str(found["to"])))
    for field in found["fields"]:
        table.add_row(
            *(escape(text) for text in (field["path"], written(field["before"]), written(field["after"])))
        )
    show(where, table)


def print_prefetched(where: Console, results: Iterable[Json]) -> None:
    table = new("model", "outcome", "fetched", prose=("why",))
    for one in results:
        why = one["error"]["message"] if "error" in one else ""
        table.add_row(escape(one["model"]), _state(one["outcome"]), size(one["bytes"] or None), escape(why))
    show(where, table)


def _state(state: str) -> str:
    style = {**STYLES, "verified": "green", "fetched": "green", "present": "green"}.get(state)
    return f"[{style}]{state}[/]" if style else state


def _moment(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


class Following:
    """A context manager to `update` with a task as it goes on: a line that changes, or one for each note."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("", console=console)
        self._said = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def update(self, task: Json) -> None:
        note = task["note"]
        if self._console.is_terminal:
            of = f" of {size(task['total'])}" if "total" in task else ""
            amount = f" · {size(task['done'])}{of}" if task["kind"] == "prefetch" and task["done"] else ""
            self._status.update(escape(f"{task['kind']} {task['subject']}: {note}{amount}"))
        elif note and note != self._said:
            self._console.print(f"  {escape(note)}")
        self._said = note
