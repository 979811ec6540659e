"""`modelyard migrate` as a user runs it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from cli.command_line import run

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
    assert migrate("up") == (0, f"{file}: base -> 0001\n")
    assert migrate("show")[1].splitlines()[1].startswith("* 0001 ")
    code, told = migrate("down", "0009")
    assert (code, told) == (1, "modelyard: there is no revision '0009' (known: base, 0001)\n")
    code, told = migrate("down", "base")
    assert code == 2
    assert "--force" in told
    copy = f"{file}.0001.backup"
    assert migrate("down", "base", "--force") == (0, f"copied to {copy}\n{file}: 0001 -> base\n")
    with closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "yard.yaml").write_text("registry: {database_url: '${DATABASE}'}")
    done = run("migrate", "up", "-c", "yard.yaml", folder=tmp_path, DATABASE=SECRET)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "modelyard: the registry's database (postgresql://ada:…@/yard) cannot be used"
    )
    assert "s3cret" not in done.stdout + done.stderr
