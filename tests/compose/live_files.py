"""A yard whose configuration lies in files that a test rewrites."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.answers import Answer
from gateway.live_yard import LiveYard, running, sections, short_folder
from modelyard import compose, config
from modelyard.config.reading import FilesRead


class FileYard(LiveYard):
    """A live yard that was read from `path`."""

    def __init__(self, yard: compose.Yard, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(yard, folder / "yard.sock")
        self.folder = folder
        self.path = folder / "modelyard.yaml"
        self._settings = settings

    def text(self, models: Mapping[str, Any], **settings: Any) -> str:
        """The file's text with these models; `settings` stand instead of those of the start."""
        return sections(self.folder, models, **{**self._settings, **settings})

    def write(self, models: Mapping[str, Any], **settings: Any) -> None:
        """Replace the file at once, as an editor does."""
        fresh = self.path.with_name("fresh")
        fresh.write_text(self.text(models, **settings))
        os.replace(fresh, self.path)

    async def change(self, models: Mapping[str, Any], **settings: Any) -> Answer:
        """Write the file and have it applied."""
        self.write(models, **settings)
        return await self.apply()

    async def apply(self, path: Path | None = None, *, dry_run: bool = False) -> Answer:
        order = {"path": str(path) if path is not None else None, "dry_run": dry_run}
        return await self.post("/admin/config", order)

    def knows(self, count: int) -> bool:
        """Whether there are so many models."""
        return len(self.yard.names.all()) == count

    @property
    def problem(self) -> str:
        return self.yard.live.standing.problem


@asynccontextmanager
async def file_yard(
    models: Mapping[str, Any], *, watch: bool = False, poll: float = 0.02, **settings: Any
) -> AsyncIterator[FileYard]:
    """A yard of these models, read from a file, that is looked at so often when it is watched."""
    with short_folder() as folder:
        path = folder / "modelyard.yaml"
        path.write_text(sections(folder, models, **settings))
        noted = FilesRead()
        loaded = await asyncio.to_thread(config.load, path, reading=noted)
        origin = compose.Origin(path, noted, watch=watch, poll=poll)
        yard = await compose.build(loaded, origin, check_invariants=True)
        live = FileYard(yard, folder, settings)
        async with running(live, folder):
            yield live
