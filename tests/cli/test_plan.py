"""`modelyard plan` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cli import test_commands
from cli.command_line import run
from compose.test_refused_starts import GGUF
from modelyard.cli.plan_tables import LISTED, print_plan
from modelyard.client import Client


@pytest.fixture(name="server")
def running(tmp_path: Path) -> Iterator[str]:
    """The URL of a running server, with room for two of its three models."""
    yield from test_commands.server.__wrapped__(tmp_path)  # type: ignore[attr-defined]


def test_plan_shows_what_leaves_and_apply_does_it(server: str) -> None:
    with Client(server) as client:
        client.load("one")
        client.load("two")
        shown = run("plan", "load", "six", MODELYARD_URL=server)
        assert shown.returncode == 0, shown.stderr
        for words in ("load six would take about", "one-1 leaves (4.0 MB on pool)", "makes room for six"):
            assert words in shown.stdout
        assert "one-1" in shown.stdout.partition("holds while")[2], "what it rests on"
        kept = run("plan", "load", "six", "--no-evict", MODELYARD_URL=server)
        assert kept.stdout.splitlines()[0].startswith("load six would be refused: "), kept.stdout
        assert {each["id"] for each in client.instances()} == {"one-1", "two-2"}
        done = run("plan", "load", "six", "--apply", MODELYARD_URL=server)
        assert "load six: done after" in done.stdout
        assert {each["id"] for each in client.instances()} == {"two-2", "six-3"}


def test_of_what_a_long_plan_rests_on_the_first_facts_are_printed() -> None:
    facts = [{"name": f"fact {number}.", "value": "so", "note": ""} for number in range(LISTED + 5)]
    made = {"order": "x", "seconds": 1.0, "steps": [], "open": [], "memory": [], "preconditions": facts}
    where = Console(record=True, width=100, file=StringIO())
    print_plan(where, made)
    shown = where.export_text()
    assert shown.count("fact ") == LISTED
    assert "fact 0." in shown
    assert "… and 5 more, which --json tells." in shown
    print_plan(where, {**made, "preconditions": facts[:LISTED]})
    assert "more" not in where.export_text()


NOTHING = {"seconds": 0.0, "open": [], "memory": [], "preconditions": []}


def step(does: str, model: str, code: str | None = None, at: float = 0.0) -> dict[str, object]:
    told = {"does": does, "model": model, "code": code, "at": at, "instance": None}
    return {**told, "requests": 1, "memory": {}, "reason": "", "score": {}, "seconds": 0.0}


@pytest.mark.parametrize(
    ("order", "steps", "heading"),
    [
        ("load big", [step("loaded", "big", "never_fits")], "load big would be refused: never_fits"),
        (
            "load big",
            [step("loaded", "big", "load_failed", 4.0)],
            "load big would be refused after about 4.0 s: load_failed",
        ),
        (
            "load big",
            [step("refuse", "other", "wait_too_long"), step("loaded", "big")],
            "load big would take about 0.0 s",
        ),
        ("request big", [step("refuse", "big", "never_fits")], "request big would be refused: never_fits"),
        (
            "request big",
            [step("refuse", "big", "wait_too_long"), step("grant", "big")],
            "request big would take about 0.0 s",
        ),
        ("unload big", [step("refuse", "big", "model_unloaded")], "unload big would take about 0.0 s"),
    ],
)
def test_an_order_that_would_be_refused_is_headed_so(
    order: str, steps: list[dict[str, object]], heading: str
) -> None:
    where = Console(record=True, width=100, file=StringIO())
    print_plan(where, {**NOTHING, "order": order, "steps": steps})
    assert where.export_text().splitlines()[0] == heading


def test_plan_as_json(server: str) -> None:
    told = json.loads(
        run("plan", "request", "one", "--priority", "high", "--json", MODELYARD_URL=server).stdout
    )
    assert [step["does"] for step in told["steps"]] == ["start", "ready", "grant"]
    assert told["applied"] is None
    again = json.loads(run("plan", "unload", "one", "--apply", "--json", MODELYARD_URL=server).stdout)
    assert again["steps"] == []
    assert again["applied"]["done"]


def test_an_option_of_another_action_is_refused() -> None:
    refused = run("plan", "load", "one", "--now", MODELYARD_URL="http://127.0.0.1:9")
    assert refused.returncode == 2
    assert "has no --now" in refused.stderr


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e400"])
def test_a_wait_is_a_number_of_seconds(seconds: str) -> None:
    refused = run("plan", "request", "one", "--max-wait", seconds, MODELYARD_URL="http://127.0.0.1:9")
    assert refused.returncode == 2
    assert "--max-wait" in refused.stderr
    assert "is not a number of seconds from 0 on" in refused.stderr


EXAMPLES = Path(__file__).parents[2] / "examples"
PLANS = Path(__file__).parent / "plans"


@pytest.mark.parametrize("name", ["two-24gb-gpus", "four-gpus-dp-mp", "two-gpus"])
def test_the_plan_of_a_start_is_told_without_a_server(name: str, tmp_path: Path) -> None:
    made = run("plan", "--config", str(EXAMPLES / f"{name}.yaml"), HOME=str(tmp_path), COLUMNS="120")
    assert made.returncode == 0, made.stderr
    lines = [line.rstrip() for line in made.stdout.splitlines()]
    assert lines == (PLANS / f"{name}.txt").read_text().splitlines()


def test_a_start_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "modelyard.yaml"
    path.write_text(
        "devices: {g: {kind: declared, memory: 1MB}}\n"
        "models: {a: {engine: fake, parameters: {memory: {accelerator: 2000000}}}}"
    )
    refused = run("plan", "--config", str(path), HOME=str(tmp_path))
    assert refused.returncode != 0
    assert "models.a: needs 2000000 bytes (2.0 MB) and can never fit" in refused.stderr
    both = run("plan", "load", "a", "--config", str(path))
    assert both.returncode == 2


def test_the_plan_of_a_start_as_json(tmp_path: Path) -> None:
    path = str(EXAMPLES / "four-gpus-dp-mp.yaml")
    told = json.loads(run("plan", "--config", path, "--json", HOME=str(tmp_path)).stdout)
    starts = [sorted(step["memory"]) for step in told["steps"] if step["does"] == "start"]
    assert starts == [["gpu0", "gpu2"], ["gpu1", "gpu3"]]


def last_line(tmp_path: Path, text: str) -> str:
    path = tmp_path / "modelyard.yaml"
    path.write_text(text)
    return run("plan", "--config", str(path), HOME=str(tmp_path)).stdout.splitlines()[-1]


def test_what_has_no_place_beside_what_stays_is_named(tmp_path: Path) -> None:
    said = last_line(
        tmp_path,
        "devices: {g: {kind: declared, memory: 3MB}}\n"
        "models:\n"
        "  a: &a {engine: fake, parameters: {memory: {accelerator: 2000000}}}\n"
        "  b: {<<: *a, replicas: 1}\n",
    )
    assert said == "Not all of it is loaded: a cannot be beside the others."


def test_files_that_lie_here_are_planned_with_though_nobody_read_them_whole(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(GGUF)
    model = "{engine: llamacpp, source: ./a.gguf, parameters: {context: 64}}"
    assert last_line(tmp_path, f"models: {{a: {model}}}").startswith("All of it fits at once")
    far = "{engine: llamacpp, source: 'hf://org/repo/a.gguf'}"
    assert last_line(tmp_path, f"models: {{a: {far}}}").startswith("As far as is known, all of it fits")
