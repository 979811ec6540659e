"""`modelyard engine` against a running server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cli.command_line import run
from gateway.live_yard import child_yard, fake, short_folder
from modelyard.cli import installed


async def test_profiles_are_put_listed_and_removed() -> None:
    with short_folder() as folder:
        file = folder / "profile.yaml"
        async with child_yard(folder, {"a": fake()}) as yard:

            async def order(*words: str, code: int = 0) -> str:
                done = await asyncio.to_thread(run, "engine", *words, "--url", f"unix:{yard.socket}")
                assert done.returncode == code, done.stdout + done.stderr
                return done.stdout if code == 0 else done.stderr

            file.write_text("type: fake\ndefaults: {seed: 7}\n")
            made = await order("put", "org/slow", "-f", str(file))
            assert made == "org/slow is a profile of fake; 0 models are run with it\n"
            rows = {line.split()[0]: line for line in (await order("ls")).splitlines() if line.strip()}
            assert {"org/slow", "fake"} <= rows.keys()
            assert "registry" in rows["org/slow"]
            shown = {one["name"]: one for one in json.loads(await order("ls", "--json"))}
            assert shown["org/slow"]["defaults"] == {"seed": 7}
            file.write_text("type: fake\nprogram: /bin/sh\n")
            assert "allow_programs" in await order("put", "org/slow", "-f", str(file), code=1)
            file.write_text("- fake\n")
            assert "holds no fields" in await order("put", "org/slow", "-f", str(file), code=2)
            assert await order("rm", "org/slow") == "org/slow is gone\n"
            assert "There is no engine profile" in await order("rm", "org/slow", code=1)


def test_brackets_of_an_extra_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "_rows", lambda: [installed.Row("x", "golden", "run pip install 'a[b]'")])
    installed.engines()
    assert "run pip install 'a[b]'" in capsys.readouterr().out


def test_the_engines_of_this_machine(tmp_path: Path) -> None:
    tool = tmp_path / "ovms"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    done = run("engines", "--json", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = {row["engine"]: row for row in json.loads(done.stdout)}
    assert rows["fake"] == {"engine": "fake", "verified": "real", "missing": ""}
    assert rows["command preset openvino"] == {
        "engine": "command preset openvino",
        "verified": "golden",
        "missing": "",
    }
    sglang = rows["command preset sglang"]
    assert sglang["verified"] == "golden"
    assert "there is no sglang on PATH; run `pip install sglang`" in sglang["missing"]
    table = run("engines", PATH=str(tmp_path)).stdout
    assert "supported" not in table
    (line,) = (line for line in table.splitlines() if "preset openvino" in line)
    assert line.split() == ["command", "preset", "openvino", "golden", "can", "be", "run"]
