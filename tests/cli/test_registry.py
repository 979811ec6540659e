"""The commands for models as data against a running server, and what they print."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml
from rich.console import Console

from cli.command_line import run
from engines.gguf_file import gguf
from gateway.live_yard import ChildYard, child_yard, fake, short_folder
from modelyard.cli import registry_tables
from modelyard.cli.tables import size as size_of
from modelyard.client import Client
from modelyard.errors import NameTaken, NoRoomBeside, RevisionMismatch, VersionNotFound
from store.test_quantize import random_gguf
from waiting import until

Order = Callable[..., Awaitable[str]]


@pytest.fixture
async def yard() -> AsyncIterator[ChildYard]:
    with short_folder() as folder:
        async with child_yard(folder, {"a": fake(aliases=["short"])}) as live:
            yield live


@pytest.fixture
def order(yard: ChildYard) -> Order:
    """Run a command against the yard; what it prints."""

    async def told(*words: str, code: int = 0) -> str:
        done = await asyncio.to_thread(run, *words, "--url", f"unix:{yard.socket}")
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    return told


def file_of(yard: ChildYard, **fields: Any) -> str:
    path = yard.folder / "fields.yaml"
    path.write_text(yaml.safe_dump(fake(**fields)))
    return str(path)


async def test_a_model_from_its_registration_to_its_end(yard: ChildYard, order: Order) -> None:
    told = await order("register", "org/b:1", "-f", file_of(yard), "--description", "a trial")
    assert told.startswith("org/b:1 is registered: org/b:1@")
    assert "version 2" not in told
    versions = await order("versions", "org/b:1", "-f", file_of(yard, slots=2))
    assert "current" in versions
    assert len(json.loads(await order("versions", "org/b:1", "--json"))) == 2
    told = await order("diff", "org/b:1", "1", "2")
    assert [line.split() for line in told.splitlines() if "slots" in line] == [["slots", "1", "2"]]
    assert (await order("promote", "org/b:1", "2")).startswith("promote org/b:1@2: done (")
    assert "version              org/b:1@" in await order("describe", "org/b:1")
    assert (await order("rollback", "org/b:1")).startswith("rollback org/b:1@1: done (")
    assert await order("tag", "org/b:1", "best", "2") == "org/b:1:best is version 2\n"
    described = await order("describe", "org/b:1")
    for line in ("description          a trial", "tags                 best = 2", "keep_alive           600"):
        assert line in described
    answer = await yard.post("/v1/models/org/b:1:best/predict", {"prompt": "hi"})
    assert answer.status == 200
    assert await order("tag", "org/b:1", "best", "--remove") == "org/b:1:best is no more\n"
    rows = [line.split() for line in (await order("get")).splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("a", "org/b:1")] == ["a", "org/b:1"]
    assert "org/b:1" not in await order("get", "--name", "A")
    assert "org/b:1" in await order("get", "org/b:1")
    assert "present" in await order("prefetch", "a", "org/b:1@2")
    told = await order("rm", "org/b:1")
    assert told.startswith(("org/b:1 is gone", "remove org/b:1: done"))
    assert "There is no model 'org/b:1'" in await order("describe", "org/b:1", code=1)


async def test_what_a_models_file_tells(yard: ChildYard, order: Order) -> None:
    path = yard.folder / "chat.gguf"
    told = {"general.architecture": "llama", "llama.context_length": 512, "general.file_type": 7}
    path.write_bytes(gguf(told))
    fields = yard.folder / "fields.yaml"
    fields.write_text(yaml.safe_dump({"engine": "llamacpp", "source": str(path), "devices": ["ram"]}))
    assert (await order("register", "chat", "-f", str(fields))).startswith("chat is registered")
    described = [line.split() for line in (await order("describe", "chat")).splitlines()]
    assert ["size", f"{path.stat().st_size}", "B"] in described
    for line in (["quantization", "q8_0"], ["trained_context", "512"], ["context", "512"]):
        assert line in described


async def test_the_policy_is_set(yard: ChildYard, order: Order) -> None:
    await order("register", "b", "-f", file_of(yard))
    told = await order("set", "b", "keep_alive=1h", "priority=high", "pin=true", "queue_bound=5")
    assert told == "b is changed: revision 2\n"
    found = json.loads(await order("describe", "b", "--json"))
    policy = found["policy"]
    assert (policy["keep_alive"], policy["priority"]) == (3600, "high")
    assert (policy["pin"], policy["queue_bound"]) == (True, 5)
    changed = await order(
        "set", "b", "pin=", "--alias", "c", "--alias", "d", "--description", "a trial", "--json"
    )
    changed = json.loads(changed)
    assert (changed["policy"]["pin"], changed["modelyard"]["aliases"]) == (False, ["c", "d"])
    assert changed["modelyard"]["registered"]["description"] == "a trial"
    assert json.loads(await order("set", "c", "aliases=[e]", "--json"))["modelyard"]["aliases"] == ["e"]
    assert json.loads(await order("set", "b", "aliases=", "--json"))["modelyard"]["aliases"] == []
    described = await order("describe", "b")
    history = [line.split() for line in described.partition("policies")[2].splitlines()[1:]]
    assert [(line[0], line[3]) for line in history] == [("3", "anybody"), ("2", "anybody"), ("1", "anybody")]
    assert "{keep_alive: 1h, priority: high, pin: true, queue_bound: 5}" in " ".join(history[1])
    for words, said in (
        (("b", "keep_alive=soon"), "keep_alive"),
        (("b", "slots=2"), "is part of a version"),
        (("b", "since=2025-01-01"), "since"),
        (("b", "--alias", "a"), "a is a model already"),
        (("a", "pin=true"), "belongs to the configuration's file ("),
        (("b@1", "pin=true"), "name the model"),
        (("nobody", "pin=true"), "There is no model 'nobody'"),
    ):
        assert said in await order("set", *words, code=1), words
    for wrong in (("b",), ("b", "pin"), ("b", "=1"), ("b", "revision=1")):
        await order("set", *wrong, code=2)


async def test_it_is_not_set_over_what_somebody_else_has_set() -> None:
    asked: list[tuple[str, str | None]] = []

    class Changed(BaseHTTPRequestHandler):
        """A server whose model is changed by another client between two requests."""

        def do_GET(self) -> None:
            asked.append((self.command, self.headers["if-match"]))
            self._answer(200, {"id": "b", "modelyard": {"registered": {"revision": 3, "number": 1}}})

        def do_PATCH(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append((self.command, self.headers["if-match"]))
            self._answer(412, {"error": {"code": "revision_mismatch", "message": "it was changed meanwhile"}})

        def _answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Changed) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        done = await asyncio.to_thread(run, "set", "b", "pin=true", "--url", url)
        server.shutdown()
    assert (done.returncode, done.stderr) == (1, "modelyard: it was changed meanwhile\n")
    assert asked == [("GET", None), ("PATCH", '"3"')]


async def test_a_version_is_described_with_its_files(yard: ChildYard, order: Order) -> None:
    source, fields = random_gguf(yard.folder / "m.gguf"), yard.folder / "m.yaml"
    fields.write_text("{engine: llamacpp, devices: [ram], parameters: {context: 64}}")
    await order("register", "m", "-f", str(fields), "--source", str(source))
    await order("prefetch", "m")
    found: dict[str, Any] = {}

    async def known() -> bool:
        found.update(json.loads(await order("describe", "m@1", "--json")))
        return bool(found["artifacts"])

    await until(known, 30.0)
    assert (found["artifacts"][0]["path"], len(found["policies"])) == ("model", 1)
    files = (await order("describe", "m")).partition("\nartifacts\n")[2].splitlines()
    assert files[0].split()[0] == "model"
    assert str(source) in files[0]
    assert found["artifacts"][0]["sha256"][:12] in files[0]
    assert "policies" not in await order("describe", "a")
    assert size_of(source.stat().st_size) in await order("versions", "m")


async def test_what_is_refused(yard: ChildYard, order: Order) -> None:
    for words, said in (
        (("register", "a", "-f", file_of(yard)), "modelyard: a is a model already"),
        (("register", "b", "--source", "/nowhere/x.gguf"), "modelyard: "),
        (("rm", "a"), "belongs to the configuration's file ("),
        (("rm", "nobody"), "There is no model 'nobody'"),
        (("promote", "a", "1"), "belongs to the configuration's file ("),
        (("prefetch", "nobody"), "There is no model 'nobody'"),
    ):
        assert said in await order(*words, code=1), words
    (yard.folder / "list.yaml").write_text("[1]")
    for wrong in (
        ("register", "b"),
        ("register", "b", "-f", str(yard.folder / "list.yaml")),
        ("register", "b", "-f", str(yard.folder / "none.yaml")),
        ("tag", "a", "x"),
        ("tag", "a", "x", "1", "--remove"),
        ("diff", "a", "1"),
        ("diff", "a", "1", "2", "-f", "x"),
        ("get", "a", "--name", "b"),
        ("promote", "a", "0"),
    ):
        await order(*wrong, code=2)


async def test_a_task_that_is_not_waited_for(yard: ChildYard, order: Order) -> None:
    await order("register", "b", "-f", file_of(yard))
    await order("versions", "b", "-f", file_of(yard, slots=2))
    told = await order("promote", "b", "2", "--no-wait")
    assert "under way as t" in told
    task = told.split()[-1]

    def follow() -> str:
        with Client(f"unix:{yard.socket}") as client:
            return str([each["state"] for each in client.follow(client.task(task))][-1])

    assert await asyncio.to_thread(follow) == "done"


async def test_the_client(yard: ChildYard) -> None:
    await asyncio.to_thread(_use, f"unix:{yard.socket}")


def _use(url: str) -> None:
    with Client(url) as client:
        made = client.register("b", "mine", **fake(memory=6_000_000))
        assert made["modelyard"]["registered"]["description"] == "mine"
        with pytest.raises(NameTaken):
            client.register("b", **fake())
        assert client.add_version("b", **fake(memory=6_000_000, slots=2))["number"] == 2
        assert [one["id"] for one in client.models(name="b", limit=1)] == ["b"]
        changed = client.set_policy("b", revision=2, keep_alive="1m")
        assert changed["policy"]["keep_alive"] == 60
        with pytest.raises(RevisionMismatch):
            client.set_policy("b", revision=2, pin=True)
        assert client.predict("b", prompt="hi")["object"] == "text_completion"
        with pytest.raises(NoRoomBeside):
            list(client.follow(client.promote("b", 2)))
        (*_, done) = client.follow(client.promote("b", 2, swap=True))
        assert done["state"] == "done"
        with pytest.raises(VersionNotFound):
            client.rollback("b", 3)
        assert client.cancel(done["id"])["state"] == "done"
        assert client.tag("b", "old", 1)["modelyard"]["registered"]["tags"] == {"old": 1}
        assert client.compare("b", 1, 2)["fields"][0]["path"] == "slots"
        assert client.version("b", 2)["artifacts"] == []
        assert [one["number"] for one in client.policies("b", limit=1)] == [2]
        task = client.remove("b")
        if task is not None:
            list(client.follow(task))
        assert {one["kind"] for one in client.tasks()} >= {"promote"}


def test_a_task_is_told_in_lines_where_there_is_no_terminal() -> None:
    told = io.StringIO()
    with registry_tables.Following(Console(file=told, width=80)) as shown:
        for note in ("loading", "loading", "switching [x]"):
            shown.update({"kind": "promote", "subject": "b@2", "note": note, "done": 0})
    assert told.getvalue() == "  loading\n  switching [x]\n"


def test_versions_that_do_not_differ() -> None:
    told = io.StringIO()
    found = {"model": "b", "from": 1, "to": 2, "fields": []}
    registry_tables.print_comparison(Console(file=told, width=80), found)
    assert told.getvalue() == "b: 1 and 2 do not differ.\n"
