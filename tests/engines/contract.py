"""What every engine adapter must fulfil, on paper and as a process; `test_contract` runs it over all of them.

An adapter brings a Case: a spec that is fine, specs that are not, and whether it can be started here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile, product

import httpx

from modelyard.core.types import Address, Cause, Charge, Need, Placement, Spec, WarmUp
from modelyard.engines.base import Attach, Call, Command, Engine, Exit, Files, Profile
from modelyard.launchers.attached import address_of
from servers.live import Live
from waiting import until

ADDRESSES = (Address(path="/run/modelyard/i1.sock"), Address(host="127.0.0.1", port=45678))


@dataclass(frozen=True)
class Case:
    """One adapter's specs. `bad` maps a problem's path to parameters that have it; `long` is a spec whose
    generations take seconds, so that one can be interrupted. `attached`: it starts no process. `chats`: it
    has system messages computed before anybody asks."""

    engine: Engine
    spec: Spec
    long: Spec
    bad: dict[str, dict[str, object]]
    files: Files = field(default_factory=dict)
    program: str = ""
    attached: bool = False
    chats: bool = True

    @property
    def profile(self) -> Profile:
        return Profile(self.engine.type, self.engine.type, program=self.program)


def placement_of(need: Need) -> Placement:
    """A placement that gives each accelerator share a device of its own."""
    return tuple(
        Charge(f"GPU-{number}" if share.on == "accelerator" else share.on, share.bytes, share.mapped)
        for number, share in enumerate(need.shares)
    )


# -- on paper -------------------------------------------------------------------------------------------


def check_command(case: Case) -> None:
    """The command or its environment holds the address it was given, and nothing that is no text; what runs
    already has one. The model's name is there, or in what the engine is asked first."""
    placement = placement_of(case.engine.need(case.spec, case.files))
    addresses = [address for address in ADDRESSES if case.engine.unix or not address.path]
    for address in addresses:
        command = case.engine.command(case.spec, case.profile, placement, address, case.files)
        if isinstance(command, Attach):
            assert address_of(command).scheme
            continue
        line = " ".join((*command.argv, *command.environment.values()))
        assert all(isinstance(word, str) and "\0" not in word for word in command.argv)
        assert (address.path or str(address.port)) in line
        assert case.spec.model in line + case.engine.warm_up(case.spec)[0].body.decode()


def check_need(case: Case) -> None:
    """The need is positive, in whole bytes, on devices that can exist."""
    need = case.engine.need(case.spec, case.files)
    assert need.bytes > 0 or case.attached
    for share in need.shares:
        assert isinstance(share.bytes, int)
        assert share.bytes >= 0
        assert share.on
        assert all(isinstance(size, int) and size >= 0 for size in share.mapped.values())


def check_problems(case: Case) -> None:
    """A fine spec has none; each bad one is named by its path, with a message."""
    assert case.engine.problems(case.spec, case.profile) == []
    for path, parameters in case.bad.items():
        bad = Spec(case.spec.model, "e" * 64, case.engine.type, case.spec.source, parameters)
        found = dict(case.engine.problems(bad, case.profile))
        assert set(found) == {path}
        assert found[path]


def check_calls(case: Case) -> None:
    """The warm-up is some requests with JSON bodies, to paths that the engine says it answers, after others
    that have it make the model; what the spec asks for is in them, by its name."""
    prefixes = ("Be brief.",) if case.chats else ()
    asked = replace(case.spec, slots=2, warm_up=WarmUp(("one prompt", "another"), prefixes))
    for spec in (case.spec, asked):
        calls = case.engine.warm_up(spec)
        for call in calls:
            assert call.method == "POST"
            assert isinstance(json.loads(call.body), dict)
        generations = list(dropwhile(lambda call: call.path not in case.engine.paths(case.spec), calls))
        assert generations
        assert {call.path for call in generations} <= case.engine.paths(spec)
    assert case.engine.problems(asked, case.profile) == []
    sent = {call.name: call.body for call in case.engine.warm_up(asked)}
    assert b"one prompt" in sent["warm_up.prompts[0]"]
    assert b"another" in sent["warm_up.prompts[1]"]
    if case.chats:
        assert b"Be brief." in sent["warm_up.prefixes[0]"]
    else:
        asked = replace(asked, warm_up=WarmUp((), ("Be brief.",)))
        assert [path for path, _ in case.engine.problems(asked, case.profile)] == ["warm_up.prefixes"]
    assert all(path.startswith("/") for path in case.engine.paths(case.spec))
    assert case.engine.health.startswith("/")


def check_causes(case: Case) -> None:
    """Every end has a cause, whatever the log says; one without a word has the obvious one."""
    assert case.engine.cause(Exit(0), "") is Cause.EXITED
    if case.attached:
        assert case.engine.cause(Exit(None), "") is Cause.EXITED
        return
    assert case.engine.cause(Exit(None, 9), "") is Cause.KILLED
    assert case.engine.cause(Exit(None, 11), "") is Cause.CRASHED
    for exit, log in product((Exit(1), Exit(137), Exit(None, 6)), ("", "\0\ufffd" * 99, "out of memory")):
        assert isinstance(case.engine.cause(exit, log), Cause)


ON_PAPER = (check_command, check_need, check_problems, check_calls, check_causes)


# -- as a process ---------------------------------------------------------------------------------------


def argv(case: Case, spec: Spec, socket: str) -> Sequence[str]:
    """The command line that serves `spec` at a Unix socket."""
    placement = placement_of(case.engine.need(spec, case.files))
    command = case.engine.command(spec, case.profile, placement, Address(path=socket), case.files)
    assert isinstance(command, Command)
    return command.argv


async def ask(live: Live, call: Call) -> httpx.Response:
    return await live.client.request(call.method, call.path, content=call.body)


async def busy(case: Case, live: Live, *, untold: int) -> int:
    """How many requests it processes; `untold` where it cannot tell."""
    call = case.engine.busy()
    if call is None:
        return untold
    return case.engine.count_busy((await ask(live, call)).content)


async def check_answers(case: Case, live: Live) -> None:
    """Warm-up, chat, stream and metrics answer; what the adapter does not promise is refused."""
    warmed = replace(case.spec, warm_up=WarmUp(("Once",), ("Be brief.",)))
    for call in (*case.engine.warm_up(case.spec), *case.engine.warm_up(warmed)):
        warm_up = await ask(live, call)
        assert warm_up.is_success, warm_up.text
    body = {"model": case.spec.model, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    paths = case.engine.paths(case.spec)
    assert "/v1/chat/completions" in paths
    chat = await live.client.post("/v1/chat/completions", json={**body, "max_tokens": 4})
    assert chat.status_code == 200
    whole = chat.json()
    assert whole["model"] == case.spec.model
    assert whole["usage"]["completion_tokens"] == 4
    streamed = await live.client.post(
        "/v1/chat/completions",
        json={**body, "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}},
    )
    events = [event.removeprefix("data: ") for event in streamed.text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    for path in {"/v1/embeddings", "/v1/rerank"} - paths:
        refused = await live.client.post(path, json={"input": "a", "query": "a", "documents": ["a"]})
        assert refused.status_code == 501, path
    assert await busy(case, live, untold=0) == 0


async def check_departure(case: Case, live: Live) -> None:
    """A generation whose client leaves frees its slot long before it would have ended."""
    body = {
        "model": case.spec.model,
        "prompt": "Once",
        "max_tokens": 1500,
        "stream": True,
        "ignore_eos": True,
    }
    async with live.client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_raw():
            break

        async def works() -> bool:
            return await busy(case, live, untold=1) == 1

        await until(works)

    async def idle() -> bool:
        return await busy(case, live, untold=0) == 0

    await until(idle, 10)  # the whole would take 15 s and more


async def check_end(live: Live) -> None:
    """SIGTERM ends the process."""
    live.process.terminate()
    await live.exited()
