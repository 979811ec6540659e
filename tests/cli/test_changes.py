"""`modelyard diff` and `apply` against a running server, and what they print."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.command_line import run
from gateway.live_yard import child_yard, fake, sections, short_folder
from modelyard.cli import plan_tables


def printed(change: dict[str, Any]) -> str:
    told = io.StringIO()
    plan: dict[str, Any] = {"steps": [], "open": []}
    plan_tables.print_change(
        Console(file=told, width=100), {"source": "/etc/yard.yaml", "plan": plan, **change}
    )
    return told.getvalue()


def field(path: str, before: object, after: object) -> dict[str, object]:
    return {"path": path, "before": before, "after": after}


async def test_diff_shows_what_apply_does_then() -> None:
    with short_folder() as folder:
        async with child_yard(folder, {"a": fake(), "b": fake()}, options=["--no-watch"]) as yard:
            path, url = folder / "modelyard.yaml", f"unix:{yard.socket}"

            async def order(*words: str) -> str:
                done = await asyncio.to_thread(run, *words, "--url", url)
                assert done.returncode == 0, done.stderr
                return done.stdout

            assert await order("diff") == f"{path} says what is served already.\n"
            path.write_text(sections(folder, {"a": fake(slots=2, keep_alive="1m"), "c": fake()}))
            told = await order("diff", "-f", str(path))
            for line in ("a      replaced   slots: 1 → 2", "c      added", "b      removed"):
                assert line in told
            assert "keep_alive: 600 → 60" in told
            assert told.endswith("is not served yet; `modelyard apply` does that.\n")
            assert len((await yard.http.get("/v1/models")).json()["data"]) == 2
            change = json.loads(await order("apply", "--json"))
            assert [one["kind"] for one in change["models"]] == ["replaced", "added", "removed"]
            listed = (await yard.http.get("/v1/models")).json()["data"]
            assert [one["id"] for one in listed] == ["a", "c"]
            assert (await order("apply", "-f", str(path))).endswith("says what is served already.\n")


async def test_a_refusal_names_file_and_line_and_ps_tells_of_it() -> None:
    with short_folder() as folder:
        async with child_yard(folder, {"a": fake()}, options=["--no-watch"]) as yard:
            path, url = folder / "modelyard.yaml", f"unix:{yard.socket}"
            path.write_text("models:\n  a:\n    engine: nothing\n    slots: many\n")
            done = await asyncio.to_thread(run, "apply", "--url", url)
            assert (done.returncode, done.stdout) == (1, "")
            lines = done.stderr.splitlines()
            assert lines[0] == f"modelyard: models.a.slots: is not a whole number ({path}:4)"
            assert lines[1].startswith("models.a.engine: there is no engine profile or engine 'nothing'")
            told = (await asyncio.to_thread(run, "ps", "--url", url)).stdout
            said = (
                "the last reload failed, and what was served before still is: models.a.slots: is not a whole"
            )
            assert said in told
            assert f"({path}:4) (and 1 more)" in told


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with short_folder() as folder:
        async with child_yard(folder, {"a": fake()}) as yard:
            gone = tmp_path / "gone.yaml"
            done = await asyncio.to_thread(run, "diff", "-f", str(gone), "--url", f"unix:{yard.socket}")
            assert done.returncode == 1
            assert done.stderr == f"modelyard: cannot read {gone}: No such file or directory\n"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, 5, "x: - → 5"),
        (1.0, 0.25, "x: 1 → 0.25"),
        (True, False, "x: true → false"),
        (["a"], ["a", "b"], "x: a → a, b"),
        ([], "", "x: - → -"),
        ("[red]", {"a": 1}, "x: [red] → {'a': 1}"),
    ],
)
def test_values_are_shown_as_they_are_written(before: object, after: object, said: str) -> None:
    model = {"model": "m", "kind": "policy", "fields": [field("x", before, after)], "running": 2}
    told = printed({"applied": True, "models": [model], "settings": [field("server.queue_bound", 5, 6)]})
    assert said in told
    assert "2 running finish on what goes" in told
    assert "server.queue_bound   set      5 → 6" in told
    assert told.endswith("/etc/yard.yaml is served now.\n")
