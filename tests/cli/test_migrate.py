"""`modelyard migrate` as a user runs it."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import yaml

from cli.command_line import DEADLINE, command, free_port, run
from cli.test_commands import _wait_for
from modelyard.registry.schema import head

SECRET = "postgresql://ada:s3cret@/yard?host=/nowhere"


def test_up_show_down(tmp_path: Path) -> None:
    (tmp_path / "yard.yaml").write_text("server: {data_dir: data}")
    file = tmp_path / "data" / "registry.db"

    def migrate(*words: str) -> tuple[int, str]:
        done = run("migrate", *words, "-c", "yard.yaml", folder=tmp_path)
        return done.returncode, done.stdout + done.stderr

    code, shown = migrate("show")
    assert (code, shown.splitlines()[0]) == (0, str(file))
    assert shown.splitlines()[1].startswith("  0001 ")
    assert not file.exists()
    last = head()
    assert migrate("up") == (0, f"{file}: base -> {last}\n")
    assert migrate("show")[1].splitlines()[1].startswith("* 0001 ")
    code, told = migrate("down", "0009")
    assert code == 1
    assert told.startswith("modelyard: there is no revision '0009' (known: base, 0001")
    assert migrate("down", last) == (0, f"{file} has {last}\n")
    for target, goes in (
        ("0001", "all keys, engine profiles, usage, footprints, "),
        ("base", "models, versions"),
    ):
        code, told = migrate("down", target)
        assert code == 1
        assert goes in told
        assert told.endswith("--force does it\n")
    assert migrate("show")[1].splitlines()[-1].startswith(f"* {last} ")
    copy = f"{file}.{last}.backup"
    assert migrate("down", "base", "--force") == (0, f"copied to {copy}\n{file}: {last} -> base\n")
    with closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("SELECT version_num FROM alembic_version").fetchall() == [(last,)]


def test_down_beside_a_server_is_refused(tmp_path: Path) -> None:
    port = free_port()
    setting = {"server": {"data_dir": "data", "port": port}, "models": {"m": {"engine": "fake"}}}
    (tmp_path / "yard.yaml").write_text(yaml.safe_dump(setting))
    words = ("migrate", "down", "0001", "--force", "-c", "yard.yaml")
    with (tmp_path / "output").open("w") as output:
        server = subprocess.Popen(
            command("serve", "-c", "yard.yaml"),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=tmp_path,
        )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{port}", server)
        refused = run(*words, folder=tmp_path)
        assert refused.returncode == 1
        assert "registry.db is in use: stop every server that has it open" in refused.stderr
        assert not list((tmp_path / "data").glob("*.backup"))
    finally:
        server.terminate()
        server.wait(DEADLINE)
    assert run(*words, folder=tmp_path).returncode == 0


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "yard.yaml").write_text("registry: {database_url: '${DATABASE}'}")
    done = run("migrate", "up", "-c", "yard.yaml", folder=tmp_path, DATABASE=SECRET)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "modelyard: the registry's database (postgresql://ada:…@/yard) cannot be used"
    )
    assert "s3cret" not in done.stdout + done.stderr
