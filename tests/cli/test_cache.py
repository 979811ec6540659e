"""`modelyard cache` as a user runs it: on a folder, beside a running server, and through it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from cli.command_line import DEADLINE, command, free_port, run
from cli.test_commands import _wait_for
from modelyard.registry import NewVersion, Registry
from modelyard.registry.records import ProfileRecord
from modelyard.store import Store, StoredFile, Terms
from modelyard.store.partial import State
from store.byte_source import Bytes, weights
from store.test_changed_files import flip

CONTENT = {name: weights(name) for name in ("a", "b")}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose cache has two files; nobody listens where it says."""
    path = tmp_path / "yard.yaml"
    setting = {"data_dir": str(tmp_path / "data"), "port": free_port()}
    path.write_text(yaml.safe_dump({"server": setting, "models": {"m": {"engine": "fake"}}}))
    asyncio.run(_filled(tmp_path / "data" / "store"))
    return path


async def _filled(root: Path) -> None:
    with closing(Store(root, [Bytes(CONTENT)])) as store:
        for name in CONTENT:
            store.shelf.used((await store.fetch(f"bytes://{name}", Terms())).digest, "chat")


def blobs(config: Path) -> list[Path]:
    return sorted((config.parent / "data" / "store" / "blobs" / "sha256").iterdir())


@pytest.fixture
def server(config: Path) -> Iterator[str]:
    """The URL of the server of the configuration, which listens elsewhere than that says."""
    port = free_port()
    with (config.parent / "output").open("w") as output:
        words = command("serve", "-c", str(config), "--port", str(port))
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(DEADLINE)


def test_a_folder_without_a_server(config: Path) -> None:
    shown = run("cache", "ls", "-c", str(config))
    assert shown.returncode == 0, shown.stderr
    assert "bytes://a" in shown.stdout
    assert "chat" in shown.stdout
    assert "4.0 kB in the cache" in shown.stdout
    listed = json.loads(run("cache", "ls", "-c", str(config), "--json").stdout)
    assert {file["digest"] for file in listed["files"]} == {blob.name for blob in blobs(config)}
    whole = run("cache", "verify", "-c", str(config))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "2 files, 0 not what they were" in whole.stdout
    bad = blobs(config)[0]
    flip(bad)
    found = run("cache", "verify", "-c", str(config))
    assert found.returncode == 1
    assert bad.name in found.stdout
    assert "was promised" in found.stdout
    assert len(blobs(config)) == 1
    dry = run("cache", "prune", "--all", "--dry-run", "-c", str(config))
    assert "would become free" in dry.stdout
    assert len(blobs(config)) == 1
    assert "0 B became free" in run("cache", "prune", "--older", "1h", "-c", str(config)).stdout
    assert "4.0 kB became free" in run("cache", "prune", "--all", "-c", str(config)).stdout
    assert blobs(config) == []
    assert "no files" in run("cache", "ls", "-c", str(config)).stdout


def test_what_another_process_holds_stays(config: Path) -> None:
    with closing(Store(config.parent / "data" / "store", [])) as store:
        first, second = blobs(config)
        assert store.hold("engine", [StoredFile(first, 0, first.name)])
        done = run("cache", "prune", first.name, second.name, "-c", str(config))
        assert "is in use and stays" in done.stdout
    assert blobs(config) == [first]


@pytest.mark.parametrize("asked", ["folder", "server"])
def test_a_download_that_did_not_end(config: Path, asked: str, request: pytest.FixtureRequest) -> None:
    words = ["-c", str(config)] if asked == "folder" else ["--url", request.getfixturevalue("server")]
    left = config.parent / "data" / "store" / "partial" / "key"
    left.mkdir(parents=True)
    (left / "data").write_bytes(bytes(100_000))
    (left / "source").write_text("https://ada:secret@host/large.gguf")
    State("exact", 400_000, "", ((0, 100_000),)).write(left)
    shown = run("cache", "ls", *words)
    assert "unfinished: 100 kB of 400 kB" in " ".join(shown.stdout.replace("│", " ").split())
    assert "host/large.gguf" in shown.stdout
    assert "secret" not in shown.stdout
    assert "2 files, 0 not what they were" in run("cache", "verify", *words).stdout
    with (config.parent / "data" / "store" / "locks" / "key").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as whoever fetches it does
        assert "coming: 100 kB" in " ".join(run("cache", "ls", *words).stdout.replace("│", " ").split())
        assert (
            "is in use and stays"
            in run("cache", "prune", "https://ada:secret@host/large.gguf", *words).stdout
        )
        assert left.exists()
    assert run("cache", "prune", "--all", *words).returncode == 0
    assert not left.exists()


def test_through_a_server(server: str) -> None:
    assert "bytes://a" in run("cache", "ls", "--url", server).stdout
    verified = run("cache", "verify", MODELYARD_URL=server)
    assert verified.returncode == 0, verified.stderr
    assert "2 files, 0 not what they were" in verified.stdout
    assert "2.0 kB became free" in run("cache", "prune", "bytes://a", "--url", server).stdout
    assert "bytes://a" not in run("cache", "ls", "--url", server).stdout


def test_beside_a_server_that_cannot_be_asked(server: str, config: Path) -> None:
    """It listens elsewhere: the folder is worked on."""
    assert "4.0 kB became free" in run("cache", "prune", "--all", "-c", str(config)).stdout
    assert "no files" in run("cache", "ls", "--url", server).stdout


def test_what_a_policy_keeps_stays(config: Path) -> None:
    path = config.parent / "kept.gguf"
    path.write_bytes(weights("kept"))
    setting = yaml.safe_load(config.read_text())
    setting["models"] = {"m": {"engine": "llamacpp", "source": str(path), "pin": True}}
    config.write_text(yaml.safe_dump(setting))

    async def used() -> None:
        with closing(Store(config.parent / "data" / "store")) as store:
            await store.fetch(str(path), Terms())

    asyncio.run(used())
    assert "is in use and stays" in run("cache", "prune", str(path), "-c", str(config)).stdout
    setting["models"]["m"]["pin"] = False
    config.write_text(yaml.safe_dump(setting))
    assert str(path) in run("cache", "prune", str(path), "-c", str(config)).stdout
    assert path.exists(), "it is the user's"


def registered(config: Path, source: Path, pin: bool) -> None:
    async def register() -> None:
        registry = Registry(config.parent / "data" / "registry.db")
        await registry.profiles.put(ProfileRecord("own", 1, {"type": "llamacpp"}, 0.0, 0.0, "ada"))
        new = NewVersion({"engine": "own", "source": str(source)}, "0" * 12)
        await registry.register("r", new, who="ada", policy={"pin": pin})
        await registry.close()

    asyncio.run(register())


@pytest.mark.parametrize("pin", [True, False])
def test_what_the_policy_of_a_registered_model_keeps_stays(config: Path, pin: bool) -> None:
    path = config.parent / "kept.gguf"
    path.write_bytes(weights("kept"))

    async def used() -> None:
        with closing(Store(config.parent / "data" / "store")) as store:
            await store.fetch(str(path), Terms())

    asyncio.run(used())
    registered(config, path, pin)
    done = run("cache", "prune", str(path), "bytes://a", "-c", str(config))
    assert ("kept.gguf is in use and stays" in done.stdout) is pin
    assert len(blobs(config)) == 1, "nobody keeps that"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("file", "file is not a database; so every file that a source stands for is kept"),
        ("schema", "has an older schema; `modelyard migrate up` changes that; so every file"),
        ("model", "models.r.source"),
    ],
)
def test_what_the_registry_cannot_tell_keeps_all_that_has_a_source(
    config: Path, broken: str, said: str
) -> None:
    file = config.parent / "data" / "registry.db"
    if broken == "file":
        file.write_bytes(b"no database" * 1000)
    if broken == "schema":
        assert run("migrate", "up", "-c", str(config)).returncode == 0
        assert run("migrate", "down", "0001", "--force", "-c", str(config)).returncode == 0
    if broken == "model":
        registered(config, Path("relative.gguf"), pin=True)
    before = file.read_bytes()
    orphan = blobs(config)[0].with_name("f" * 64)
    orphan.write_bytes(b"nobody's")
    done = run("cache", "prune", "--all", "-c", str(config))
    assert said in done.stderr
    assert done.returncode == 0
    assert (len(blobs(config)), orphan.exists()) == (2, False)
    assert file.read_bytes() == before


def test_to_look_makes_no_registry(config: Path) -> None:
    assert run("cache", "ls", "-c", str(config)).returncode == 0
    assert not list((config.parent / "data").glob("registry.db*"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("prune",), 1, "Say what is to go"),
        (("prune", "--all", "--older", "1d"), 1, "one of these"),
        (("prune", "nobody"), 1, "The cache has no file 'nobody'"),
        (("prune", "--older", "soon"), 2, "is not a duration"),
        (("prune", "--older", "forever"), 2, "must have a bound"),
        (("verify", "--rate", "fast"), 2, "is not a size"),
    ],
)
def test_what_is_refused(config: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = run("cache", *words, "-c", str(config))
    assert done.returncode == code
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert len(blobs(config)) == 2


def test_there_has_to_be_a_cache_or_a_server(tmp_path: Path) -> None:
    path = tmp_path / "yard.yaml"
    path.write_text(yaml.safe_dump({"server": {"data_dir": str(tmp_path / "none"), "port": free_port()}}))
    done = run("cache", "ls", "-c", str(path))
    assert (done.returncode, "there is no cache in" in done.stderr) == (1, True)
    assert not (tmp_path / "none").exists()
    away = run("cache", "ls", "--url", f"http://127.0.0.1:{free_port()}", "-c", str(path))
    assert (away.returncode, "no server answers" in away.stderr) == (1, True)
