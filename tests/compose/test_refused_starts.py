"""`modelyard serve` on what cannot be served: one clear error with its path, exit code 1, nothing left."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from engines.gguf_file import gguf
from gateway.live_yard import SHARE, child_yard, fake, left_behind, sections, short_folder
from launchers.process_table import zombies

DEADLINE = 30.0
GGUF = gguf(
    {
        "general.architecture": "llama",
        "llama.context_length": 4096,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
    },
    [("token_embd.weight", (64, 100_000), 0)],
)


def serve(folder: Path, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    """`modelyard serve` that has to end by itself."""
    path = folder / "modelyard.yaml"
    path.write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "modelyard", "serve", "-c", str(path), *more],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
    )


def refused(folder: Path, text: str, *said: str) -> None:
    """It says all of this, in lines without a traceback, and leaves no process, socket or half file."""
    result = serve(folder, text)
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.startswith("modelyard: ")
    assert "Traceback" not in result.stdout + result.stderr
    for words in said:
        assert words in result.stderr
    assert not (folder / "yard.sock").exists()
    assert left_behind(folder, "nobody") == []
    assert zombies() == []
    assert not any(written(folder / "data")), "what a refused start left"


def written(data: Path) -> Iterator[Path]:
    """Files below a data folder that say anything: no locks, no record that nothing runs, no journal, and no
    registry in which there is nothing, nor the note that it had no keys."""
    for path in data.rglob("*"):
        if path.parent.name == "journal" or (path.name.startswith("registry.") and not registered(data)):
            continue
        nothing_runs = path.name == "instances.json" and not json.loads(path.read_text())["instances"]
        if path.is_file() and path.suffix != ".lock" and path.name != "lock" and not nothing_runs:
            yield path


def registered(data: Path) -> int:
    """How many models the registry of a data folder has."""
    with closing(sqlite3.connect(f"file:{data / 'registry.db'}?mode=ro", uri=True)) as database:
        (count,) = database.execute("SELECT count(*) FROM models").fetchone()
    return int(count)


def test_models_that_are_written_wrong_are_all_named() -> None:
    models = {
        "x": fake(slot=2),
        "y": {"engine": "fak"},
        "z": fake(slots=0),
        "v": fake(keep_alive="soon"),
        "w": fake(aliases=["x"]),
    }
    with short_folder() as folder:
        refused(
            folder,
            sections(folder, models),
            "models.x.slot: is not a field here; did you mean 'slots'? (",
            "models.y.engine: there is no engine profile or engine 'fak'; did you mean 'fake'?",
            "models.z.slots: ",
            "models.v.keep_alive: ",
            "models.w.aliases[0]: 'x' is already a name of the model 'x'",
            "modelyard.yaml:",
        )


def test_models_that_this_machine_cannot_run_are_all_named() -> None:
    models = {
        "x": fake(parameters={"tokens": 2}),
        "y": fake(devices=["gpu9"]),
        "z": {"engine": "llamacpp"},
        "v": {"engine": "llamacpp", "source": "/no/such/file.gguf"},
        "w": {"engine": "llamacpp", "source": "ftp://host/file.gguf"},
        "u": {"engine": "llamacpp", "source": "hf://repo/file.gguf"},
        "t": {"engine": "llamacpp", "source": "hf://org/repo/m-00002-of-00003.gguf"},
        "good": fake(),
    }
    with short_folder() as folder:
        refused(
            folder,
            sections(folder, models),
            "models.x.parameters.tokens: is not an option of the fake engine",
            "models.y.devices: there is no device 'gpu9'; there are gpu0, ram",
            "models.z.source: is missing: name a GGUF file",
            "models.v.source: /no/such/file.gguf does not exist or is not a file",
            "models.w.source: has the unknown scheme ftp://",
            "models.u.source: is not hf://ORG/REPO[@REVISION][/path/in/repo]",
            "models.t.source: is part 2 of 3; name the first, which ends with -00001-of-00003.gguf",
            "modelyard.yaml:",
        )


def test_models_that_can_never_fit_are_all_named() -> None:
    models = {"x": fake(11_000_000), "y": fake(), "z": fake(12_000_000, devices=["gpu0"])}
    with short_folder() as folder:
        refused(
            folder,
            sections(folder, models),
            "models.x: needs 11000000 bytes (11.0 MB) and can never fit: "
            "the budget of gpu0 is 10000000 bytes (10.0 MB) in all",
            "models.z: needs 12000000 bytes (12.0 MB) and can never fit",
        )


def test_models_that_have_to_stay_and_do_not_fit_together_are_named() -> None:
    models = {
        "x": fake(6_000_000, pin=True, min_replicas=1),
        "y": fake(5_000_000, pin=True, min_replicas=1),
        "z": fake(4_000_000, min_replicas=1),
        "w": fake(9_000_000),
    }
    with short_folder() as folder:
        refused(
            folder,
            sections(folder, models),
            "models.x: has to stay loaded",
            "models.y: has to stay loaded",
            "x 6000000 bytes (6.0 MB) + y 5000000 bytes (5.0 MB) = 11000000 bytes (11.0 MB); "
            "the budgets are ",
            "gpu0 10000000 bytes (10.0 MB)",
        )


def test_a_name_that_stands_twice() -> None:
    with short_folder() as folder:
        twice = sections(folder, {}).replace(
            "models: {}\n", "models:\n  x: {engine: fake}\n  x: {engine: fake}\n"
        )
        refused(folder, twice, "models.x", "modelyard.yaml:")


def test_text_that_is_no_yaml() -> None:
    with short_folder() as folder:
        refused(folder, "models: {a: [", "modelyard.yaml:")


@pytest.mark.parametrize("name", ["none.yaml", "folder", "loop", "binary"])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    words = [sys.executable, "-m", "modelyard", "serve", "-c", str(tmp_path / name)]
    result = subprocess.run(words, check=False, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 1
    assert result.stderr.startswith("modelyard: ")
    assert str(tmp_path / name) in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_can_never_fit(known: bool) -> None:
    """Read by an earlier server with more memory, or never: the start itself says no."""
    with short_folder() as folder:
        (folder / "large.gguf").write_bytes(GGUF)
        model = {"engine": "llamacpp", "source": str(folder / "large.gguf"), "devices": ["ram"]}
        roomy, narrow = (
            sections(folder, {"large": model}, devices={"ram": {"memory": size, "reserve": 0}})
            for size in ("8GB", "20MB")
        )
        if known:
            path = folder / "modelyard.yaml"
            path.write_text(roomy)
            words = [sys.executable, "-m", "modelyard", "pull", "large", "-c", str(path)]
            pulled = subprocess.run(words, check=False, capture_output=True, text=True, timeout=DEADLINE)
            assert pulled.returncode == 0, pulled.stderr
        result = serve(folder, narrow)
        assert result.returncode == 1
        assert result.stderr.startswith("modelyard: models.large: needs ")
        assert "can never fit: the budget of ram is 20000000 bytes (20.0 MB) in all" in result.stderr
        assert not (folder / "yard.sock").exists()
        assert left_behind(folder, "nobody") == []


def test_a_server_beyond_loopback_without_keys() -> None:
    with short_folder() as folder:
        text = yaml.safe_dump(
            {
                "server": {"host": "0.0.0.0", "port": 0, "data_dir": str(folder / "data")},
                "models": {"x": {"engine": "fake"}},
            }
        )
        refused(folder, text, "server.host: is beyond loopback and there are no `keys:`", "modelyard.yaml:")


def test_a_port_that_is_taken() -> None:
    with short_folder() as folder, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = yaml.safe_dump(
            {
                "server": {"port": port, "data_dir": str(folder / "data")},
                "devices": {"gpu0": {"kind": "declared", "memory": 2 * SHARE, "reserve": 0}},
                "models": {"x": fake(preload=True)},
            }
        )
        refused(folder, text, f"127.0.0.1:{port} is in use: choose another with --port")


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"data_dir": "file"}, "server.data_dir: the folder {0}/file cannot be used (File exists); "),
        ({"data_dir": "file/data"}, "server.data_dir: the folder {0}/file/data cannot be used (Not a dir"),
        ({"data_dir": "used"}, "{0}/used cannot be used ({0}/used/store/blobs"),
        ({"data_dir": "/sys/modelyard"}, "server.data_dir: the folder /sys/modelyard cannot be used ("),
        (
            {"unix": "none/yard.sock"},
            "server.unix: {0}/none/yard.sock cannot be made: make the folder {0}/none",
        ),
        ({"unix": "file"}, "server.unix: {0}/file is there and is no socket: remove it"),
        ({"unix": "long/" + 90 * "x"}, "server.unix: is longer than the 107 bytes"),
        ({"host": "nobody.invalid"}, "the host nobody.invalid is not known: choose another with --host"),
        ({"host": "192.0.2.1"}, "192.0.2.1:0 is no address of this machine: choose another with --host"),
    ],
)
def test_a_folder_or_an_address_that_cannot_be_used(server: dict[str, str], said: str) -> None:
    with short_folder() as folder:
        (folder / "file").write_text("mine")
        (folder / "used").mkdir()
        (folder / "used" / "store").write_text("mine")
        setting = {"data_dir": "data", "allow_unauthenticated": True, **server}
        if "unix" not in server:
            setting["port"] = 0
        text = yaml.safe_dump({"server": setting, "models": {"x": {"engine": "fake"}}})
        refused(folder, text, said.format(folder))
        assert (folder / "file").read_text() == (folder / "used" / "store").read_text() == "mine"


def test_a_socket_that_another_server_listens_on() -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(folder / "taken.sock"))
        taken.listen()
        server = {"unix": str(folder / "taken.sock")}
        refused(
            folder,
            sections(folder, {"x": fake()}, server=server),
            f"server.unix: {folder}/taken.sock is in use by another server: stop that, or name another path",
        )
        assert (folder / "taken.sock").is_socket()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_that_may_not_be_written() -> None:
    with short_folder() as folder:
        (folder / "data").mkdir(mode=0o500)
        refused(folder, sections(folder, {"x": fake()}), f"the folder {folder}/data cannot be used (")


async def test_a_data_folder_that_is_taken_names_who_has_it() -> None:
    with short_folder() as folder:
        async with child_yard(folder, {"a": fake()}) as first:
            await first.chat("a")
            second = sections(folder, {"a": fake()}, server={"unix": str(folder / "second.sock")})
            (folder / "second").mkdir()
            result = serve(folder / "second", second)
            assert result.returncode == 1
            assert f"is in use by another Modelyard (pid {first.process.pid})" in result.stderr
            assert "Traceback" not in result.stdout + result.stderr
            assert not (folder / "second.sock").exists()
            again = await first.chat("a")
            assert again.status == 200, again.body
