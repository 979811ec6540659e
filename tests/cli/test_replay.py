"""`modelyard replay` and `advise` as a user runs them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.command_line import run
from gateway.live_yard import fake, live_yard, sections
from modelyard.launchers.local import LocalLauncher
from waiting import until

HEAD = "timestamp,input_tokens,output_tokens,model\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    rows = [f"{number * 4},400,100,{'one' if number % 3 else 'two'}\n" for number in range(60)]
    path.write_text(HEAD + "".join(rows) + "soon,1,1,one\n9999,1,1,seven\n")
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> str:
    models: dict[str, Any] = {
        name: {
            "engine": "fake",
            "slots": 2,
            "parameters": {"memory": {"accelerator": 4_000_000}, "load_time": 3},
        }
        for name in ("one", "two")
    }
    content = {
        "server": {"data_dir": str(tmp_path / "data")},
        "devices": {"pool": {"kind": "declared", "memory": "6MB", "reserve": 0}},
        "models": models,
    }
    path = tmp_path / "yard.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_configuration_is_replayed_by_every_strategy(trace: str, config: str) -> None:
    shown = run("replay", trace, "-c", config)
    assert shown.returncode == 0, shown.stderr
    for text in ("first come", "LRU", "ours", "≤ 10 s", "pool: held"):
        assert text in shown.stdout
    for said in (
        "1 bad line was skipped, the first is line 62: its time cannot be read: 'soon'",
        "1 requests left out for models that are not configured, or without a size: seven",
        "load times of 2 of them as recorded or configured",
        "service 0.2 ms per token in + 10 ms per token out",
    ):
        assert said in shown.stdout


def test_json_and_a_picture_of_one_strategy(trace: str, config: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    shown = run(
        "replay", trace, "-c", config, "-s", "lru", "--target", "3s", "--json", "--plot", str(picture)
    )
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    (only,) = told["strategies"]
    assert (only["strategy"], only["requests"], only["target"]) == ("LRU", 60, 3.0)
    assert only["fewest_loads"] <= only["loads"] == only["bytes_loaded"] // 4_000_000
    assert only["devices"]["pool"]["memory"][0] == [0.0, 0]
    assert picture.read_text().startswith("<svg")


def test_made_up_models(trace: str) -> None:
    shown = run(
        "replay", trace, "--memory", "6GB", "--sizes", "4GB", "--slots", "1", "-s", "ours", "--no-bound"
    )
    assert shown.returncode == 0, shown.stderr
    assert "no configuration: 3 models of 4 GB by turns, 1 slots each, in 6 GB" in shown.stdout


def test_advice(trace: str, config: str) -> None:
    shown = run("advise", trace, "-c", config, "--target", "1s")
    assert shown.returncode == 0, shown.stderr
    assert "as configured:" in shown.stdout
    assert re.search(r"devices\.pool: 4\.0 MB more memory +-38 .* -152 MB ", shown.stdout), shown.stdout
    told = json.loads(run("advise", trace, "-c", config, "--json", "--simulations", "1").stdout)
    assert len(told["changes"]) == 1
    assert told["not_tried"] > 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-s", "fastest"], 2, "there is no strategy 'fastest'; there are 'first come', 'LRU'"),
        (["--memory", "much"], 2, "'much' is not a size"),
        (["--target", "soon"], 2, "'soon' is not a duration"),
        (["--plot", "a.gif"], 1, "a picture is an .svg or a .png"),
        (["-c", "{config}", "--size", "nobody=4GB"], 1, "--size: there is no model 'nobody'"),
        (["-c", "{config}", "--size", "4GB"], 2, "'4GB' is not MODEL=SIZE"),
    ],
)
def test_what_is_wrong_is_said(trace: str, config: str, words: list[str], code: int, says: str) -> None:
    shown = run("replay", trace, *(word.replace("{config}", config) for word in words))
    assert shown.returncode == code
    assert says in " ".join(shown.stderr.replace("│", " ").split())


def test_a_file_that_is_no_trace(config: str) -> None:
    shown = run("replay", config)
    assert shown.returncode == 1
    assert "is no trace: Expected is a CSV" in shown.stderr


def test_a_model_whose_size_nobody_knows(trace: str, tmp_path: Path) -> None:
    path = tmp_path / "far.yaml"
    models = {"one": {"engine": "llamacpp", "source": "hf://org/repo/one.gguf"}}
    path.write_text(yaml.safe_dump({"server": {"data_dir": str(tmp_path / "data")}, "models": models}))
    shown = run("replay", trace, "-c", str(path))
    assert shown.returncode == 1
    assert "models.one: its size is not known" in shown.stderr
    again = run("replay", trace, "-c", str(path), "-s", "ours", "--size", "one=1GB")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("command", ["replay", "advise"])
async def test_a_server_on_the_same_data_folder_is_left_alone(
    trace: str, config: str, tmp_path: Path, command: str
) -> None:
    launcher = LocalLauncher(tmp_path / "data")
    await launcher.open()
    try:
        before = sorted(path.name for path in (tmp_path / "data").iterdir())
        shown = await asyncio.to_thread(run, command, trace, "-c", config)
        assert shown.returncode == 0, shown.stderr
        after = {path.name for path in (tmp_path / "data").iterdir()}
        assert "run" in before
        assert after - set(before) <= {"store"}
        assert after >= set(before)
    finally:
        await launcher.close()


async def test_load_times_are_those_that_a_server_has_seen(trace: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with live_yard({"one": fake()}, server={"data_dir": str(data)}) as yard:
        await yard.load("one")
        await until(lambda: yard.driver.footprints._entries)
    before = (data / "registry.db").read_bytes()
    path = tmp_path / "seen.yaml"
    models = {"one": fake(), "two": fake(parameters={"seed": 2})}
    path.write_text(sections(tmp_path, models, server={"data_dir": str(data)}))
    shown = await asyncio.to_thread(run, "replay", trace, "-c", str(path))
    assert "load times of 1 of them as recorded or configured" in shown.stdout, shown.stderr
    assert (data / "registry.db").read_bytes() == before


def test_looking_makes_no_registry(trace: str, config: str, tmp_path: Path) -> None:
    assert run("replay", trace, "-c", config).returncode == 0
    assert not (tmp_path / "data" / "registry.db").exists()
