"""`modelyard demo` as a newcomer runs it: the whole tour with real models, then Ctrl-C; nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from cli.command_line import command
from e2e.real_models import EXAMPLES
from engines.demo_model import demo_gguf
from launchers.process_table import with_mark_of
from modelyard.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEADLINE = 240.0
END = "Ctrl-C ends it"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of its own for what the demo keeps, but for what it fetches: that is kept for the next run."""
    fetched = demo_gguf().parent / "demo" / "modelyard" / "store"
    fetched.mkdir(parents=True, exist_ok=True)
    (tmp_path / "modelyard").mkdir(0o700)
    (tmp_path / "modelyard" / "store").symlink_to(fetched)
    return tmp_path


def start(data: Path) -> subprocess.Popen[str]:
    """The demo on a free port."""
    return subprocess.Popen(
        command("demo", "--port", "0"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_DATA_HOME": str(data), "NO_COLOR": "1"},
        start_new_session=True,
    )


def read_until(demo: subprocess.Popen[str], words: str) -> str:
    """What it prints, up to the line with these words."""
    assert demo.stdout is not None
    killer = threading.Timer(DEADLINE, demo.kill)
    killer.start()
    lines = []
    try:
        for line in demo.stdout:
            lines.append(line)
            if words in line:
                return "".join(lines)
    finally:
        killer.cancel()
    raise AssertionError(f"it ended with {demo.wait()} before {words!r}: {''.join(lines)}")


def interrupt(demo: subprocess.Popen[str], data: Path) -> None:
    """Ctrl-C: it ends with 0, says nothing but what it waits for, and no process of it is left."""
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 0, errors
    assert re.fullmatch(r"(modelyard: waiting up to [^\n]*; Ctrl-C again stops now\n)?", errors)
    assert with_mark_of(data) == []


def plan_and_do(text: str) -> None:
    """Bring a model back that left: what is planned is done, and `explain` tells of the same victims."""
    found = re.search(r"curl (http://127\.0\.0\.1:\d+)/generate", text)
    assert found is not None
    with Client(found[1]) as client:
        resident = {each["model"] for each in client.instances()}
        model = next(each["id"] for each in client.models() if each["id"] not in resident)
        plan = client.plan("load", model)
        victims = [step for step in plan["steps"] if step["does"] == "leave"]
        assert victims, "it fits without anybody leaving"
        done = client.apply_plan(plan["id"])
        assert done["done"]
        told = [line["text"] for line in client.explain(model)["story"]]
        assert {each["id"] for each in client.instances()}.isdisjoint(step["instance"] for step in victims)
    assert f"{done['instance']} was ready" in told[-1]
    left = [line for line in told if " is the victim: " in line][-len(victims) :]
    for step, line in zip(victims, left, strict=True):
        assert line.startswith(f"{step['instance']} is the victim: makes room for {model}")


def test_the_tour_runs_through(data: Path) -> None:
    with start(data) as demo:
        try:
            text = read_until(demo, END)
            plan_and_do(text)
            interrupt(demo, data)
        finally:
            demo.kill()
    assert "It serves smol-long, smol-fast, smol-wide." in text
    assert "makes room for smol-wide" in text
    assert "16 answers in" in text
    assert "nobody turned away" in text
    assert re.search(r"curl http://127\.0\.0\.1:\d+/generate", text)
    words = [line for line in text.splitlines() if line.startswith("  ") and len(line.split()) >= 3]
    assert len(words) >= 3, "three answers of real models"


def test_ctrl_c_in_the_middle(data: Path) -> None:
    with start(data) as demo:
        try:
            read_until(demo, "smol-long")
            interrupt(demo, data)
        finally:
            demo.kill()


def test_it_is_the_example() -> None:
    from modelyard.cli.serving import demo_file

    assert demo_file().resolve() == (EXAMPLES / "demo.yaml").resolve()
