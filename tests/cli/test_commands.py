"""The command line as a user runs it: its own process, a real server, what it prints and its exit code."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from rich.console import Console

from cli.command_line import DEADLINE, command, free_port, run
from modelyard import __version__
from modelyard.cli import serving, tables
from modelyard.client import Client
from modelyard.config import json_schema, load
from modelyard.errors import ModelNotFound, ServerUnreachable

WAITS = "modelyard: waiting up to 1 s for the models to leave; Ctrl-C again stops now\n"
HEAVY = (
    "client",
    "compose",
    "config",
    "core.types",
    "gateway",
    "importing",
    "registry",
    "runtime",
    "sim.replay",
)
PARAMETERS = {"memory": {"accelerator": 4_000_000}, "tokens_per_second": 500}
CONFIG = {
    "devices": {"pool": {"kind": "declared", "memory": 10_000_000, "reserve": 0}},
    "defaults": {"min_residency": "0s", "patience": "0s"},
    "models": {
        name: {"engine": "fake", "slots": 2, "parameters": PARAMETERS} for name in ("one", "two", "six")
    },
}


def config_file(folder: Path, **server: object) -> Path:
    path = folder / "yard.yaml"
    setting = {"data_dir": str(folder / "data"), "drain_grace": "1s", **server}
    path.write_text(yaml.safe_dump({**CONFIG, "server": setting}))
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a running `modelyard serve`."""
    port = free_port()
    words = command("serve", "-c", str(config_file(tmp_path)), "--port", str(port))
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield url
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait(DEADLINE)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    with Client(url) as client:
        for _ in range(1000):
            assert process.poll() is None
            try:
                client.call("GET", "/health")
            except ServerUnreachable:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.02)
            else:
                return
    raise AssertionError("the server does not listen")


def test_a_day_with_a_server(server: str) -> None:
    """Load, look, read its log, unload."""
    loaded = run("load", "one", "--url", server)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.startswith("one is ready: one-1")
    shown = run("ps", MODELYARD_URL=server)
    assert "one-1" in shown.stdout
    assert "loaded" in shown.stdout
    narrow = run("ps", MODELYARD_URL=server, PYTHONIOENCODING="ascii")
    assert (narrow.returncode, narrow.stderr) == (0, "")
    assert "one-1" in narrow.stdout
    status = json.loads(run("ps", "--json", "--url", server).stdout)
    assert [instance["id"] for instance in status["instances"]] == ["one-1"]
    assert "one-1 4.0 MB" in run("devices", "--url", server).stdout
    devices = json.loads(run("devices", "--json", "--url", server).stdout)
    assert {device["id"] for device in devices} == {"ram", "pool"}
    logs = run("logs", "one-1", "-n", "1", "--url", server)
    assert (logs.returncode, len(logs.stdout.splitlines())) == (0, 1)
    assert run("unload", "one", "--url", server).stdout.startswith("one is gone: one-1")
    assert run("unload", "one", "--url", server).stdout == "one was not loaded\n"


def test_a_device_is_fenced_and_used_again(server: str) -> None:
    fenced = run("fence", "pool", "--reason", "a new fan", MODELYARD_URL=server)
    assert fenced.stdout == "pool is fenced; nobody is there\n", fenced.stderr
    assert "fenced: a new fan" in run("devices", MODELYARD_URL=server).stdout
    assert run("unfence", "pool", MODELYARD_URL=server).stdout == "pool is in use again\n"
    unknown = run("fence", "gpu9", MODELYARD_URL=server)
    assert unknown.returncode == 1
    assert "There is no device gpu9; there are ram, pool" in unknown.stderr


def test_a_request_and_a_model_are_explained(server: str) -> None:
    for model in ("one", "two", "six"):
        answer = httpx.post(f"{server}/generate", json={"model": model, "prompt": "secret"}, timeout=DEADLINE)
    request = answer.headers["x-modelyard-request"]
    told = run("explain", request, "--url", server)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0] == f"request {request} for six"
    assert re.match(r"[0-9:.]{12} \+0\.000 s The request arrived for six \(generate, ", lines[1])
    assert re.search(r"(one-1|two-2) is the victim: makes room for six", told.stdout)
    assert "The request was answered (ok)" in lines[-1]
    of_model = run("explain", "one", MODELYARD_URL=server).stdout
    assert "one-1 was ready after" in of_model
    assert "requests in the journal: 1 ok" in of_model
    found = json.loads(run("explain", request, "--json", "--url", server).stdout)
    assert found["story"][-1]["kind"] == "end"
    assert "secret" not in told.stdout + of_model


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("load", "oen"), "There is no model 'oen'. Did you mean 'one'"),
        (("unload", "nothing"), "There is no model 'nothing'"),
        (("logs", "nobody-7"), "There is no instance nobody-7"),
        (("explain", "oen"), "There is no model 'oen'. Did you mean 'one'"),
        (("explain", "r00000000-1"), "There is no request r00000000-1 in the journal, which goes from 20"),
    ],
)
def test_an_error_is_one_line(server: str, words: tuple[str, ...], said: str) -> None:
    result = run(*words, "--url", server)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"modelyard: {said}")


@pytest.mark.parametrize(
    "words", [("ps",), ("devices",), ("load", "x"), ("unload", "x"), ("logs", "x"), ("explain", "x")]
)
def test_no_server(words: tuple[str, ...]) -> None:
    result = run(*words, "--url", f"http://127.0.0.1:{free_port()}")
    assert result.returncode == 1
    assert "no server answers at" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("url", ["localhost:8080", "http://::1:8080", "http://[::1", "http://a:port"])
def test_an_address_that_is_none(url: str) -> None:
    result = run("ps", "--url", url)
    assert (result.returncode, result.stdout) == (1, "")
    assert "is no address of a server" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [("serve",), ("demo",)])
def test_a_port_that_is_taken(tmp_path: Path, words: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run(*words, "-c", str(config_file(tmp_path)), "--port", port)
    assert result.returncode == 1
    assert f"modelyard: 127.0.0.1:{port} is in use: choose another with --port" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_demo_is_told_how_to_have_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "modelyard"
    folder.mkdir()
    with (folder / "lock").open("w") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        alone = run("demo", "--port", "0", XDG_DATA_HOME=str(tmp_path))
        data = {"server": {"data_dir": str(folder)}}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({**CONFIG, **data}))
        own = run("demo", "-c", str(tmp_path / "own.yaml"), "--port", "0")
    for result in (alone, own):
        assert (result.returncode, result.stdout) == (1, "")
        assert "is in use by another Modelyard" in result.stderr
    assert "`XDG_DATA_HOME=FOLDER modelyard demo --port 0`" in alone.stderr
    assert "XDG_DATA_HOME" not in own.stderr, "that file can name another"


def test_beyond_loopback_without_keys(tmp_path: Path) -> None:
    result = run("serve", "-c", str(config_file(tmp_path)), "--host", "0.0.0.0", "--port", "0")
    assert result.returncode == 1
    assert result.stderr.startswith("modelyard: server.host: is beyond loopback")


def test_a_wrong_configuration(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("models: {x: {engine: nothing}}\n")
    for words in (("serve",), ("demo",), ("pull", "x")):
        result = run(*words, "-c", str(path))
        assert result.returncode == 1
        assert "models.x.engine" in result.stderr
        assert "Traceback" not in result.stderr


def the_tour(config: Path, last: str, *more: str) -> tuple[str, str]:
    """What `modelyard demo` prints, and its log, with Ctrl-C after a line with the words `last`."""
    words = command("demo", "-c", str(config), "--port", "0", *more)
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        try:
            assert demo.stdout is not None
            lines = []
            for line in demo.stdout:
                lines.append(line)
                if last in line:
                    break
            demo.send_signal(signal.SIGINT)
            rest, errors = demo.communicate(timeout=DEADLINE)
        finally:
            demo.kill()
    assert demo.returncode == 0
    assert errors.endswith(WAITS)
    return "".join(lines) + rest, errors.removesuffix(WAITS)


def test_the_tour(tmp_path: Path) -> None:
    """All of it, in plain lines, then Ctrl-C."""
    text, log = the_tour(config_file(tmp_path), "Ctrl-C ends it")
    assert log == ""
    assert "Ctrl-C ends it" in text.splitlines()[-1]
    assert "\x1b" not in text
    assert "It serves one, six, two." in text
    assert "makes room for" in text
    assert text.index("before pool") < text.index("after  pool")
    assert "16 answers in" in text
    assert "nobody turned away" in text
    assert "from openai import OpenAI" in text


def test_the_tour_of_fewer_models(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    whole = yaml.safe_load(path.read_text())

    def tour_of(*names: str, last: str = "Ctrl-C ends it") -> tuple[str, str]:
        models = {name: whole["models"][name] for name in names}
        path.write_text(yaml.safe_dump({**whole, "models": models}))
        return the_tour(path, last)

    alone, _ = tour_of("one")
    assert "\nOne model\n" in alone
    assert "several models" not in alone
    assert "And one more" not in alone
    assert "16 answers in" in alone
    pair, _ = tour_of("one", "two")
    assert "It fits beside the others: nobody had to leave." in pair
    none, log = tour_of(last="no tour")
    assert "It serves no model yet" in none
    assert "no model is configured" in log


@pytest.mark.parametrize(
    ("last", "more", "url"),
    [("listens on", (), "http://127.0.0.1:"), ("It serves", ("--host", "::1"), "http://[::1]:")],
    ids=["at once", "on an IPv6 address"],
)
def test_ctrl_c_during_the_tour(tmp_path: Path, last: str, more: tuple[str, ...], url: str) -> None:
    text, log = the_tour(config_file(tmp_path), last, *more)
    assert (url in text, log) == (True, "")


def test_pull_of_a_model_without_files(tmp_path: Path) -> None:
    result = run("pull", "one", "-c", str(config_file(tmp_path)))
    assert (result.returncode, result.stdout) == (0, "one is in the cache: 0 files, 0 B\n")
    result = run("pull", "nothing", "-c", str(config_file(tmp_path)))
    assert result.returncode == 1
    assert "There is no model 'nothing'" in result.stderr


def test_pull_gives_back_what_it_took(tmp_path: Path) -> None:
    def pools() -> list[str]:
        links = (Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [str(link.readlink()) for link in links if link.exists() and "-pools-" in str(link.readlink())]

    loaded = load(config_file(tmp_path))
    assert asyncio.run(serving._pull(loaded, "one", lambda step: None)) == (0, 0)
    assert pools() == []
    with pytest.raises(ModelNotFound):
        asyncio.run(serving._pull(loaded, "nothing", lambda step: None))
    assert pools() == []


def test_schema_and_version() -> None:
    assert json.loads(run("schema").stdout) == json_schema()
    assert run("version").stdout == f"{__version__}\n"


def test_a_command_does_not_wait_for_what_others_need() -> None:
    heavy = {"httpx", "fastapi", "structlog", "asyncio", "rich", *(f"modelyard.{name}" for name in HEAVY)}
    code = f"import sys, modelyard.cli; sys.exit(', '.join({heavy!r} & set(sys.modules)) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_demos_configuration_is_found_and_right() -> None:
    config = load(serving.demo_file())
    assert len(config.models) == 3
    assert config.server.port == 8080


def test_tables_keep_names_whole_however_narrow_the_terminal() -> None:
    name = "quick-chat-4-of-somebody"
    sizes = {"total": 10, "budget": 10, "reserved": 1, "observed": 1, "foreign": 0, "free": 9}
    holders = [{"instance": name, "observed": 1, "reserved": 1}]
    device = {"id": "gpu0", "name": "gpu0", "kind": "declared", **sizes, "closed": "", "instances": holders}
    for console in (
        Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None),
        tables.console(io.StringIO()),
    ):
        tables.print_devices(console, [device])
        assert isinstance(console.file, io.StringIO)
        (row,) = [line for line in console.file.getvalue().splitlines() if "gpu0" in line]
        assert f"{name} 1 B" in row
        assert "9 B" in row


def test_ps_shows_who_sleeps_and_what_is_closed() -> None:
    console = tables.console(io.StringIO())
    sizes = {"total": 10, "budget": 10, "reserved": 1, "observed": 1, "foreign": 0, "free": 9}
    held = {"device": "ram", "reserved": 40_000_000, "observed": None, "mapped": 0}
    instance = {"id": "a-1", "state": "asleep", "leases": [], "slots": 2, "idle_for": None, "reason": "asked"}
    sleep = {"rung": "level-1", "gave_back": {"gpu0": 4_000_000}}
    device = {"id": "gpu0", "name": "gpu0", "kind": "declared", **sizes, "instances": []}
    tables.print_status(
        console,
        {
            "devices": [{**device, "closed": "lost: it fell off the bus"}],
            "instances": [{**instance, "memory": [held], "sleep": sleep}],
            "models": [],
            "fetches": [],
            "config": {"problem": ""},
            "ready": True,
            "running": 0,
            "waiting": 0,
            "uptime": 1.0,
            "version": "1",
        },
    )
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "lost: it fell off the bus" in shown
    (row,) = [line for line in shown.splitlines() if "a-1" in line]
    assert "asleep (level-1)" in row
    assert "ram 40.0 MB; gave back gpu0 4.0 MB" in row
