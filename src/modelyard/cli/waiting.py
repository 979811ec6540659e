"""What is shown while a model's first words are awaited: its download, its load, or its place in line."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

Json = dict[str, Any]


class Waiting:
    """A context manager to `update` with the server's status. A bar on a terminal, else a line per change."""

    def __init__(self, console: Console, model: str) -> None:
        self._console = console
        self._model = model
        self._said = ""
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("waiting", total=None, amount="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, status: Json) -> None:
        """Show how far it is now."""
        doing = _doing(status, self._model)
        if not doing:
            return
        fetch = next((fetch for fetch in status["fetches"] if fetch["model"] == self._model), None)
        task = self._bars.tasks[0]
        if fetch is not None and fetch["total"]:
            amount = str(DownloadColumn().render(task)) if task.total else ""
            self._bars.update(
                self._task, description=doing, completed=fetch["done"], total=fetch["total"], amount=amount
            )
        else:
            self._bars.update(self._task, description=doing, total=None, amount="")
        if doing != self._said and self._bars.disable:
            self._console.print(f"  {doing}")
        self._said = doing


def _doing(status: Json, model: str) -> str:
    """In a word or two; empty when it only generates."""
    for found in status["models"]:
        if found["id"] == model:
            state = str(found["details"]["state"])
            if state in ("fetching", "loading"):
                return f"{state} {model}"
            if found["queue"]["line"]:
                return f"making room for {model}"
    return ""
