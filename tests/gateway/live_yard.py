"""A whole yard for tests: in this process on the test's loop, or as a child process like a user's.

Both listen on a Unix socket in a short temporary folder, with fake engines on a declared device, and fail
their test when anything is left at the end: a lease, a place in a queue, a reserved byte, a process, a
broken invariant.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from gateway.answers import Answer, Stream
from launchers.process_table import with_mark_of, zombies
from modelyard import compose, config
from modelyard.core.lifecycle import InstanceState
from modelyard.core.state import Instance, State
from modelyard.launchers.attached import WithAttached
from modelyard.launchers.local import LocalLauncher
from modelyard.launchers.processes import marked
from modelyard.registry.database import Database
from modelyard.registry.schema import migrate
from modelyard.servers.fake_text import chat_prompt, expected_text
from waiting import until

DEADLINE = 20.0
MB = 1_000_000
SHARE = 4 * MB  # what one fake instance takes
TWO = 10 * MB  # a device with room for two of them
QUICK = {"patience": "20ms", "min_residency": "0s", "max_wait": "20s", "drain_cap": "5s"}


def fake(memory: int = SHARE, **fields: Any) -> dict[str, Any]:
    """A model of the fake engine. `parameters` are the script's options; the rest is policy."""
    parameters = {"memory": {"accelerator": memory}, **fields.pop("parameters", {})}
    return {"engine": "fake", "slots": 1, "parameters": parameters, **fields}


def sections(
    folder: Path,
    models: Mapping[str, Any],
    *,
    memory: int = TWO,
    recheck: str = "10s",
    server: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    **more: Any,
) -> str:
    """The text of a configuration whose data and socket lie in `folder`."""
    return yaml.safe_dump(
        {
            "server": {"unix": str(folder / "yard.sock"), "data_dir": str(folder / "data"), **(server or {})},
            "devices": {"gpu0": {"kind": "declared", "memory": memory, "reserve": 0}},
            "memory": {"recheck": recheck},
            "defaults": {**QUICK, **(defaults or {})},
            "models": dict(models),
            **more,
        }
    )


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short name: pytest's paths can be longer than a socket's name may be."""
    with tempfile.TemporaryDirectory(prefix="yard-") as name:
        yield Path(name)


def left_behind(folder: Path, owner: str) -> list[int]:
    """Live processes of a yard: those that name its folder, and those that carry the mark of its launcher
    (a grandchild of an engine names nothing else)."""
    carriers = marked(lambda mark: mark.startswith(f"{owner}/"))
    return sorted({*with_mark_of(folder), *(process.pid for process in carriers)})


def body_of(model: str, prompt: str, tokens: int, stream: bool, more: Mapping[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "stream": stream, **more}


def right_text(model: str, prompt: str, tokens: int) -> str:
    """What the fake engine answers to `chat` and `stream` of these."""
    return expected_text(model, chat_prompt([{"role": "user", "content": prompt}]), tokens)


class Client:
    """Requests to a yard on a Unix socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None)),
            base_url="http://localhost",
            timeout=60.0,
        )

    async def post(self, path: str, body: object = None, **headers: str) -> Answer:
        response = await self.http.post(path, json=body, headers=headers)
        return Answer(response.status_code, dict(response.headers), response.json())

    async def chat(self, model: str, prompt: str = "hi", *, tokens: int = 4, **more: Any) -> Answer:
        """One chat without streaming; `more` goes into the body (`fake={…}` orders a failure)."""
        return await self.post("/v1/chat/completions", body_of(model, prompt, tokens, False, more))

    @asynccontextmanager
    async def open_stream(
        self,
        model: str,
        prompt: str = "hi",
        *,
        tokens: int = 4,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> AsyncIterator[tuple[Stream, AsyncIterator[None]]]:
        """A chat stream, and an iterator that reads on; leaving the context closes the connection."""
        body = body_of(model, prompt, tokens, True, more)
        async with self.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            stream = Stream(response.status_code, dict(response.headers))

            async def read_on() -> AsyncIterator[None]:
                async for piece in response.aiter_text():
                    stream.feed(piece)
                    yield

            yield stream, read_on()

    async def stream(self, model: str, prompt: str = "hi", *, tokens: int = 4, **more: Any) -> Stream:
        """A chat stream, read to its end."""
        async with self.open_stream(model, prompt, tokens=tokens, **more) as (stream, more_of_it):
            async for _ in more_of_it:
                pass
        return stream

    async def close(self) -> None:
        await self.http.aclose()


class LiveYard(Client):
    """A yard on the test's own loop, with its inside at hand."""

    def __init__(self, yard: compose.Yard, socket: Path) -> None:
        super().__init__(socket)
        self.yard = yard
        self.driver = yard.driver

    @property
    def state(self) -> State:
        return self.driver.scheduler.state

    def instances(self, model: str) -> list[Instance]:
        return [one for one in self.state.instances.values() if one.version.spec.model == model]

    def ready(self, model: str) -> Instance | None:
        """The first ready instance of a model."""
        return next((one for one in self.instances(model) if one.state is InstanceState.READY), None)

    def pids(self, model: str) -> list[int]:
        """The processes of a model's ready instance: the engine first, the shim last."""
        instance = self.ready(model)
        return [] if instance is None else self.driver.launcher.pids(instance.id)

    async def load(self, model: str) -> Instance:
        """Have an instance ready, as an operator does."""
        answer = await self.post(f"/admin/models/{model}/load")
        assert answer.status == 200, answer.body
        instance = self.ready(model)
        assert instance is not None
        return instance

    async def unload(self, model: str, *, now: bool = False) -> None:
        answer = await self.post(f"/admin/models/{model}/unload", {"now": now})
        assert answer.status == 200, answer.body

    async def busy(self, model: str) -> int:
        """The slots that the engine itself says are processing."""
        instance = self.ready(model)
        assert instance is not None
        endpoint = self.driver.commands.residents[instance.id].endpoint
        assert endpoint is not None
        _, body = await endpoint.pool.fetch("GET", "/slots", timeout=5.0)
        return sum(slot["is_processing"] for slot in json.loads(body))

    def leases(self) -> int:
        return len(self.state.leases)

    def waiting(self) -> int:
        return len(self.state.waiting)

    def reserved(self) -> int:
        return sum(account.reserved for account in self.state.ledger.devices.values())

    def notes(self, kind: str) -> list[str]:
        """The messages of what the scheduler said, by kind."""
        return [note.message for _, note in self.driver.notes.kept if note.kind == kind]

    async def settled(self, deadline: float = DEADLINE) -> None:
        """Wait until nothing runs and nobody waits, then look that nothing was lost."""
        await until(lambda: not self.leases() and not self.waiting(), deadline)
        assert not self.driver.requests.tickets, self.driver.requests.tickets
        assert not self.driver.requests.leases, self.driver.requests.leases
        for resident in self.driver.commands.residents.values():
            assert resident.endpoint is None or resident.endpoint.active == 0
        assert self.driver.check_failures == 0

    async def emptied(self) -> None:
        """Unload everything, and look that every byte came back."""
        for version in list(self.state.versions.values()):
            if version.policy.min_replicas:
                self.driver.remove(version.key)  # an unloaded one comes back
            self.driver.unload(version.key, now=True)
        await until(lambda: not self.state.instances)
        assert self.reserved() == 0
        assert not self.driver.commands.residents


@asynccontextmanager
async def running(live: LiveYard, folder: Path) -> AsyncIterator[None]:
    """Its yard is started, and leaves nothing behind in this data folder when it ends."""
    yard, owner = live.yard, ""
    try:
        await yard.start()
        launcher = yard.driver.launcher
        assert isinstance(launcher, WithAttached)
        assert isinstance(launcher.inner, LocalLauncher)
        owner = launcher.inner._state.owner
        yield
        await live.settled()
        await live.emptied()
    finally:
        await live.close()
        await yard.close()
    assert yard.driver.check_failures == 0
    assert left_behind(folder, owner) == []
    assert zombies() == []


@asynccontextmanager
async def live_yard(models: Mapping[str, Any], **settings: Any) -> AsyncIterator[LiveYard]:
    """A yard of these models, started and checked after every event; `settings` as in `sections`."""
    with short_folder() as folder:
        text = sections(folder, models, **settings)
        await put_registry(folder)
        yard = await compose.build(config.load(None, text), check_invariants=True)
        live = LiveYard(yard, folder / "yard.sock")
        async with running(live, folder):
            yield live


async def put_registry(folder: Path) -> None:
    """Have an empty registry in the data folder, with its tables: to make those takes a third of a start."""
    if not _registry:
        with short_folder() as made:
            database = Database(made / "registry.db")
            await migrate(database)
            await database.close()
            _registry.append((made / "registry.db").read_bytes())
    (folder / "data").mkdir(mode=0o700)
    (folder / "data" / "registry.db").write_bytes(_registry[0])


_registry: list[bytes] = []  # made once


class ChildYard(Client):
    """A yard in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        super().__init__(folder / "yard.sock")
        self.process = process
        self.folder = folder

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    async def listening(self) -> None:
        """Wait until it answers."""

        async def answers() -> bool:
            assert self.process.poll() is None, f"exit {self.process.returncode}: {self.output[-3000:]}"
            try:
                return (await self.http.get("/health")).status_code == 200
            except httpx.TransportError:
                return False

        await until(answers)

    def records(self) -> list[dict[str, Any]]:
        """What the launcher recorded of the running instances."""
        state = json.loads((self.folder / "data" / "instances.json").read_text())
        records: list[dict[str, Any]] = state["instances"]
        return records

    def engine(self) -> int:
        """The pid of the only engine."""
        (record,) = self.records()
        return int(record["pid"])

    def owner(self) -> str:
        """The first part of every mark that this yard gives its processes; there is one as soon as an
        instance was recorded."""
        return str(self.records()[0]["mark"].partition("/")[0])

    def processes(self, owner: str) -> list[int]:
        """Every live process of this yard but itself: engines, shims, what they forked."""
        return [pid for pid in left_behind(self.folder, owner) if pid != self.process.pid]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exited(self, deadline: float = DEADLINE) -> int:
        """Wait for its end; the return code."""
        return await asyncio.to_thread(self.process.wait, deadline)


@asynccontextmanager
async def child_yard(
    folder: Path,
    models: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    **settings: Any,
) -> AsyncIterator[ChildYard]:
    """`modelyard serve` on a configuration in `folder`; killed at the end if it still lives."""
    path = folder / "modelyard.yaml"
    path.write_text(sections(folder, models, **settings))
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelyard", "serve", "-c", str(path), *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    live = ChildYard(process, folder)
    try:
        await live.listening()
        yield live
    finally:
        await live.close()
        process.kill()
        process.wait(DEADLINE)
