"""Models of the engine `command` in a yard: it runs the fake engine by a template."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gateway.live_yard import live_yard, right_text

ENGINES = {"own": {"type": "command", "program": sys.executable}}
FAKE = ["-m", "modelyard.servers.fake", "--address", "{address}", "--slots", "{slots}"]


def own(*arguments: str, **parameters: Any) -> dict[str, Any]:
    return {"engine": "own", "parameters": {"arguments": [*FAKE, *arguments], **parameters}}


async def test_on_a_port_and_on_a_socket() -> None:
    models = {
        "port": own("--model", "{model}", memory={"ram": "50MB"}),
        "socket": own("--model", "{model}", memory={"ram": "50MB"}, socket=True),
    }
    async with live_yard(models, engines=ENGINES, devices={}) as yard:
        for name in models:
            answer = await yard.chat(name)
            assert (answer.status, answer.text) == (200, right_text(name, "hi", 4))
            instance = yard.ready(name)
            assert instance is not None
            endpoint = yard.driver.commands.residents[instance.id].endpoint
            assert endpoint is not None
            assert bool(endpoint.address.path) is (name == "socket")
            (charge,) = instance.placement
            assert (charge.device, charge.bytes) == ("ram", 50_000_000)


async def test_what_it_takes_is_measured_where_nothing_is_said() -> None:
    models = {"a": own("--model", "{model}", "--memory", "ram=30000000")}
    async with live_yard(models, engines=ENGINES, devices={}) as yard:
        await yard.load("a")
        await yard.unload("a")
        (charge,) = (await yard.load("a")).placement
        assert 30_000_000 < charge.bytes < 90_000_000


async def test_its_own_name_for_the_model() -> None:
    models = {"a": own("--model", "inner", model_name="inner", memory={"ram": "50MB"})}
    async with live_yard(models, engines=ENGINES, devices={}) as yard:
        assert (await yard.chat("a")).text == right_text("inner", "hi", 4)


async def test_what_ends_at_once_says_its_last_words() -> None:
    models = {"a": own("--model", "{model}", "--nonsense", memory={"ram": "50MB"})}
    async with live_yard(models, engines=ENGINES, devices={}) as yard:
        answer = await yard.chat("a")
        assert (answer.status, answer.code) == (503, "cannot_load")
        assert "bad_arguments: exit code 2" in answer.message
        assert "unrecognized arguments: --nonsense" in answer.message


async def test_over_the_api_a_profile_of_the_file_is_used_and_no_command_is_said() -> None:
    defaults = {"arguments": [*FAKE, "--model", "{model}", ["--context", "{context}"]]}
    engines = {"own": {**ENGINES["own"], "defaults": defaults}}
    async with live_yard({}, engines=engines, devices={}) as yard:
        memory = {"memory": {"ram": "50MB"}}
        order = {"name": "a", "engine": "own", "parameters": {**memory, "context": 100}}
        assert (await yard.post("/v1/models", order)).status == 201
        assert (await yard.chat("a")).text == right_text("a", "hi", 4)
        for said in ({"arguments": ["-c", "import os"]}, {"extra_args": ["-v"]}, {"preset": "tgi"}):
            order = {"name": "b", "engine": "own", "parameters": {**memory, **said}}
            refused = await yard.post("/v1/models", order)
            assert (refused.status, refused.code) == (422, "spec_refused")
            assert "says what is run on the server's machine" in refused.message


TAKEN_ONCE = """
import os, pathlib, socket, sys
mark, address, *more = sys.argv[1:]
if not pathlib.Path(mark).exists():
    pathlib.Path(mark).touch()
    host, port = address.split(":")
    taken = socket.create_server((host, int(port)))
    taken.set_inheritable(True)
os.execv(sys.executable, [sys.executable, "-m", "modelyard.servers.fake", "--address", address, *more])
"""


async def test_a_port_that_was_taken_meanwhile_is_another_one_the_next_time(tmp_path: Path) -> None:
    script, mark = tmp_path / "engine.py", tmp_path / "mark"
    script.write_text(TAKEN_ONCE)
    arguments = [str(script), str(mark), "{address}", "--model", "{model}"]
    model = {"engine": "own", "parameters": {"arguments": arguments, "memory": {"ram": "50MB"}}}
    async with live_yard({"a": model}, engines=ENGINES, devices={}) as yard:
        answer = await yard.chat("a")
        assert (answer.status, answer.text) == (200, right_text("a", "hi", 4))
        assert yard.state.sequence == 2
        assert any("port_in_use" in message for message in yard.notes("failed"))
