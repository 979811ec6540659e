"""The fake engine's adapter: estimate, placement and complaints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from modelyard.core.types import Address, Cause, Charge, Need, Parallel, Share, Spec
from modelyard.engines.base import Exit, Profile
from modelyard.engines.fake import FakeEngine
from modelyard.servers.fake_script import parse

ENGINE = FakeEngine()
PROFILE = Profile("fake", "fake")


def spec(parameters: Mapping[str, object], slots: int = 1) -> Spec:
    return Spec("m", "d" * 64, "fake", parameters=parameters, slots=slots)


@pytest.mark.parametrize(
    ("parameters", "need"),
    [
        ({"memory": {"ram": 5}}, Need((Share("ram", 5),))),
        ({"memory": {"accelerator": 7, "ram": 1}}, Need((Share("accelerator", 7), Share("ram", 1)))),
        (
            {"memory": {"accelerator1": 7, "accelerator2": 8}},
            Need((Share("accelerator", 7), Share("accelerator", 8))),
        ),
        ({"memory": {"gpu0": 7}, "declared": {"gpu0": 3}}, Need((Share("gpu0", 3),))),
        ({"memory": {"ram": 5}, "known": False}, Need((Share("ram", 5),), known=False)),
        ({}, Need((Share("ram", 0),))),
    ],
)
def test_the_need_is_what_is_declared(parameters: dict[str, object], need: Need) -> None:
    assert ENGINE.need(spec(parameters), {}) == need


def test_the_command_takes_what_memory_says_where_the_placement_is() -> None:
    memory = {"ram": 5, "gpu1": 6, "accelerator": 7}
    model = spec({"memory": memory, "declared": {"ram": 1}, "load_time": 0.5, "apis": ["chat"]}, slots=3)
    placement = (Charge("ram", 1), Charge("gpu1", 6), Charge("gpu0", 7))
    command = ENGINE.command(model, PROFILE, placement, Address(path="/s.sock"), {})
    address, name, script = parse(command.argv[3:])
    assert (address, name) == ("unix:/s.sock", "m")
    assert script.memory == {"ram": 5, "gpu1": 6, "gpu0": 7}
    assert (script.slots, script.load_time, script.apis) == (3, 0.5, ("chat",))


def test_parallelism_parts_what_goes_to_accelerators() -> None:
    model = replace(spec({"memory": {"accelerator": 9, "ram": 1}}), parallel=Parallel(2, 2))
    accelerators = (Share("accelerator", 3),) * 4
    assert ENGINE.need(model, {}) == Need((*accelerators, Share("ram", 1)))
    placement = (*(Charge(f"gpu{n}", 3) for n in (3, 1, 0, 2)), Charge("ram", 1))
    _, _, script = parse(ENGINE.command(model, PROFILE, placement, Address(path="/s.sock"), {}).argv[3:])
    assert script.memory == {"gpu3": 3, "gpu1": 3, "gpu0": 3, "gpu2": 3, "ram": 1}
    named = replace(model, parameters={"memory": {"accelerator": 9, "gpu0": 1}})
    assert [path for path, _ in ENGINE.problems(named, PROFILE)] == ["parameters.memory"]


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"load_time": "x"}, "parameters.load_time"),
        ({"load_tiem": 1}, "parameters.load_tiem"),
        ({"memory": 5}, "parameters.memory"),
        ({"memory": {"ram": -5}}, "parameters.memory.ram"),
        ({"declared": {"ram": "5GB"}}, "parameters.declared.ram"),
        ({"known": 1}, "parameters.known"),
        ({"slots": 2}, "parameters.slots"),
        ({"apis": ["chat", "sing"]}, "parameters.apis"),
        ({"crash_rate": 1.5}, "parameters.crash_rate"),
    ],
)
def test_problems_name_their_path(parameters: dict[str, object], path: str) -> None:
    assert [where for where, _ in ENGINE.problems(spec(parameters), PROFILE)] == [path]


@pytest.mark.parametrize(
    ("exit", "log", "cause"),
    [
        (Exit(0), "", Cause.EXITED),
        (Exit(134), "error: crash on order", Cause.CRASHED),
        (Exit(1), "error: unable to allocate buffer: out of memory", Cause.OUT_OF_MEMORY),
        (Exit(1), "couldn't bind to 127.0.0.1:80: denied", Cause.PORT_IN_USE),
        (Exit(2), "error: invalid argument: device x", Cause.BAD_ARGUMENTS),
        (Exit(3), "error: failed to load model", Cause.BAD_MODEL),
        (Exit(None, 9), "", Cause.KILLED),
        (Exit(None, 11), "", Cause.CRASHED),
    ],
)
def test_causes(exit: Exit, log: str, cause: Cause) -> None:
    assert ENGINE.cause(exit, log) is cause
