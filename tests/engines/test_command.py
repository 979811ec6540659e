"""The command adapter: what its template becomes, what is wrong with one, the presets' command lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelyard.core.types import Address, Cause, Charge, Parallel, Placement, Share, Spec, WarmUp
from modelyard.engines.base import Exit, Files, Listening, ModelFile, Profile
from modelyard.engines.command import PLACEHOLDERS, CommandEngine
from modelyard.engines.openai_http import APIS

ENGINE = CommandEngine()
SERVER = Profile("server", "command", program="/opt/server")
PORT, SOCKET = Address(port=4567), Address(path="/run/i1.sock")
RAM: Placement = (Charge("ram", 1),)
GPUS: Placement = (Charge("ram", 1), Charge("GPU-a", 1), Charge("GPU-b", 1))
FILES: Files = {"model": ModelFile(Path("/models/m"), 5000)}


def spec(slots: int = 1, source: str = "/models/m", **parameters: object) -> Spec:
    return Spec("chat/m", "d" * 64, "server", source, parameters, slots=slots, devices=("ram",))


def argv(
    one: Spec, profile: Profile = SERVER, placement: Placement = RAM, address: Address = PORT
) -> list[str]:
    assert ENGINE.problems(one, profile) == []
    return list(ENGINE.command(one, profile, placement, address, FILES).argv)


def test_placeholders() -> None:
    everything = " ".join(f"{{{name}}}" for name in PLACEHOLDERS if name != "socket")
    one = spec(slots=3, arguments=["--all", everything, "--json={'a': {'b': '{slots}'}}"], context=1000)
    assert argv(one, placement=GPUS) == [
        *("/opt/server", "--all"),
        "127.0.0.1:4567 127.0.0.1 4567 chat/m /models/m 3 1000 3000 GPU-a,GPU-b 2",
        "--json={'a': {'b': '3'}}",
    ]


def test_a_socket() -> None:
    one = spec(arguments=["{socket}", "{address}", "{{socket}}"], socket=True, health="/ready")
    assert argv(one, address=SOCKET) == ["/opt/server", "/run/i1.sock", "unix:/run/i1.sock", "{socket}"]
    assert ENGINE.listening(one) == Listening(True, "/ready")
    assert ENGINE.listening(spec(arguments=["{port}"])) == Listening(False, "/health")


def test_words_that_stand_or_fall_together() -> None:
    parts = ["{port}", ["--ctx", "{context}"], ["--gpus", "{devices}"], ["--always"]]
    assert argv(spec(arguments=parts)) == ["/opt/server", "4567", "--always"]
    assert argv(spec(arguments=parts, context=8), placement=GPUS) == [
        *("/opt/server", "4567", "--ctx", "8", "--gpus", "GPU-a,GPU-b", "--always")
    ]


@pytest.mark.parametrize(
    ("parameters", "path", "message"),
    [
        ({"arguments": ["{port}", "{contxt}"]}, "arguments", "names {contxt}, and there are address, host"),
        ({"arguments": ["{port}", "{context}"]}, "arguments[1]", "the model has no `parameters.context`"),
        ({"arguments": ["--x"]}, "arguments", "where to listen: name {address}, {port}"),
        ({"arguments": ["{port}"], "socket": True}, "arguments[0]", "leave `socket` out"),
        ({"arguments": ["{port}", "{socket}"]}, "arguments[1]", "say `socket: true`"),
        ({"arguments": ["{address}", "{host}"], "socket": True}, "arguments[1]", "leave `socket` out"),
        ({"arguments": "--port {port}"}, "arguments", "must be a list of texts"),
        ({"arguments": ["{port}"], "health": "health"}, "health", "must be a path"),
        ({"arguments": ["{port}"], "memory": {"ram": "much"}}, "memory", "is not a size"),
        ({"arguments": ["{port}"], "memory": {"ram": 0}}, "memory", "more than nothing"),
        ({"arguments": ["{port}"], "apis": ["chats"]}, "apis", "some of chat, completions"),
        ({"arguments": ["{port}"], "apis": [["chat"]]}, "apis", "some of chat, completions"),
        ({"preset": "sglong"}, "preset", "must be one of sglang"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], path: str, message: str) -> None:
    ((where, said),) = ENGINE.problems(spec(**parameters), SERVER)
    assert where == f"parameters.{path}"
    assert message in said


def test_the_warm_up_asks_for_what_the_server_calls_the_model() -> None:
    (call,) = ENGINE.warm_up(spec(arguments=["{port}"], model_name="theirs"))
    assert json.loads(call.body)["model"] == "theirs"
    (call,) = ENGINE.warm_up(spec(arguments=["{port}"]))
    assert json.loads(call.body)["model"] == "chat/m"


@pytest.mark.parametrize(("api", "path"), [*APIS.items()])
def test_it_is_warmed_up_by_whatever_it_serves(api: str, path: str) -> None:
    one = spec(arguments=["{port}"], apis=[api])
    assert ENGINE.problems(one, SERVER) == []
    assert [call.path for call in ENGINE.warm_up(one)] == [path]


def test_prefixes_are_for_a_model_that_chats() -> None:
    silent = replace(spec(arguments=["{port}"], apis=["embeddings"]), warm_up=WarmUp(prefixes=("Be brief.",)))
    assert [path for path, _ in ENGINE.problems(silent, SERVER)] == ["warm_up.prefixes"]


def test_no_source_and_no_program() -> None:
    needing = spec(source="", arguments=["{port}", "{source}"])
    assert ENGINE.problems(needing, SERVER)[0][0] == "parameters.arguments[1]"
    ((where, said),) = ENGINE.problems(spec(arguments=["{port}"]), Profile("command", "command"))
    assert (where, "with a `program`, or name a preset" in said) == ("engine", True)


def test_memory() -> None:
    declared = spec(arguments=["{port}"], memory={"ram": "1GB", "accelerator": "2GiB", "accelerator1": 7})
    need = ENGINE.need(declared, FILES)
    assert need.shares == (Share("ram", 10**9), Share("accelerator", 2**31), Share("accelerator", 7))
    assert need.known
    halves = replace(spec(arguments=["{port}"], memory={"accelerator": "2GB"}), parallel=Parallel(2))
    assert ENGINE.need(halves, FILES).shares == (Share("accelerator", 10**9), Share("accelerator", 10**9))
    uneven = replace(declared, parallel=Parallel(2))
    assert [path for path, _ in ENGINE.problems(uneven, SERVER)] == ["parameters.memory"]
    guessed = ENGINE.need(spec(arguments=["{port}"]), FILES)
    assert (guessed.shares, guessed.known) == ((Share("ram", 5000),), False)


@pytest.mark.parametrize(
    ("exit", "log", "cause"),
    [
        (Exit(1), "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", Cause.OUT_OF_MEMORY),
        (Exit(1), "OSError: [Errno 98] Address already in use", Cause.PORT_IN_USE),
        (Exit(2), "launch_server.py: error: unrecognized arguments: --x", Cause.BAD_ARGUMENTS),
        (Exit(2), "error: unexpected argument '--x' found", Cause.BAD_ARGUMENTS),
        (Exit(1), "ModuleNotFoundError: No module named 'sglang'", Cause.NOT_INSTALLED),
        (Exit(None, 9), "", Cause.KILLED),
        (Exit(0), "", Cause.EXITED),
        (Exit(3), "", Cause.CRASHED),
    ],
)
def test_causes(exit: Exit, log: str, cause: Cause) -> None:
    assert ENGINE.cause(exit, log) is cause


GOLDEN = {
    "sglang": (
        "/bin/sglang serve --model-path /models/m --served-model-name chat/m --host 127.0.0.1 --port 4567 "
        "--max-running-requests 4 --context-length 2048 --tp-size 2 --more"
    ),
    "tgi": (
        "/bin/text-generation-launcher --model-id /models/m --hostname 127.0.0.1 --port 4567 "
        "--max-concurrent-requests 4 --usage-stats off --num-shard 1 --shard-uds-path /proc/self/cwd/shard "
        "--max-total-tokens 2048 --more"
    ),
    "openvino": (
        "/bin/ovms --model_name chat/m --model_path /models/m --rest_bind_address 127.0.0.1 "
        "--rest_port 4567 --more"
    ),
    "llamafile": (
        "/bin/llamafile --server --model /models/m --alias chat/m --host 127.0.0.1 --port 4567 "
        "--parallel 4 --ctx-size 8192 --more"
    ),
}


@pytest.mark.parametrize("preset", sorted(ENGINE.presets))
def test_presets(preset: str) -> None:
    program = GOLDEN[preset].split()[0]
    profile = Profile("command", "command", found={Path(program).name: program})
    one = spec(slots=4, preset=preset, context=2048, extra_args=["--more"])
    assert argv(one, profile, GPUS) == GOLDEN[preset].split()
    assert argv(one, SERVER)[0] == "/opt/server"
    assert "/v1/chat/completions" in ENGINE.paths(one)
    assert ENGINE.listening(spec(preset=preset, health="/x")).health == "/x"


def test_instances_of_one_preset_do_not_meet() -> None:
    one = spec(preset="tgi")
    assert ENGINE.command(one, SERVER, RAM, PORT, FILES).own_folder
    assert not ENGINE.command(spec(preset="sglang"), SERVER, RAM, PORT, FILES).own_folder
    ((where, said),) = ENGINE.problems(replace(one, parallel=Parallel(2)), SERVER)
    assert (where, "one accelerator" in said) == ("parallel", True)
    assert ENGINE.problems(replace(spec(preset="sglang"), parallel=Parallel(2)), SERVER) == []


def test_a_preset_that_is_not_installed() -> None:
    profile = Profile("ov", "command", defaults={"preset": "openvino"})
    assert "there is no ovms on PATH; install OpenVINO Model Server 2026.4" in ENGINE.missing(profile)
    assert ENGINE.missing(replace(profile, program="/opt/ovms")) == ""
    assert ENGINE.missing(Profile("command", "command")) == ""
