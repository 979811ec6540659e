"""Every registered adapter fulfils the contract, on paper and as a process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines import contract
from engines.contract import Case
from modelyard.core.types import Spec
from modelyard.engines.base import ModelFile
from modelyard.engines.gguf import facts, read_header
from modelyard.engines.registry import load
from servers.live import running

ENGINES = load()
HEAVY = {"ctranslate2", "ollama", "transformers", "vllm"}  # minutes to install or to build


def fake_case(_: pytest.FixtureRequest) -> Case:
    parameters: dict[str, object] = {"memory": {"ram": 1_000_000}, "apis": ["chat", "completions", "rerank"]}
    return Case(
        engine=ENGINES["fake"],
        spec=Spec("public/name", "a" * 64, "fake", parameters=parameters),
        long=Spec("public/name", "a" * 64, "fake", parameters={**parameters, "tokens_per_second": 100}),
        bad={
            "parameters.memory.ram": {"memory": {"ram": "1GB"}},
            "parameters.tokens": {"tokens": 1},
        },
    )


def llamacpp_case(request: pytest.FixtureRequest) -> Case:
    path: Path = request.getfixturevalue("gguf")
    file = ModelFile(path, path.stat().st_size, "b" * 64, facts(read_header(path)))
    spec = Spec("public/name", "a" * 64, "llamacpp", str(path), {"context": 2048})
    return Case(
        engine=ENGINES["llamacpp"],
        spec=spec,
        long=spec,
        bad={
            "parameters.kv.k": {"kv": {"k": "q9"}},
            "parameters.kv": {"kv": "q8_0"},
            "parameters.contxt": {"contxt": 1},
            "parameters.extra_args": {"extra_args": ["--verbose"]},
            "parameters.draft.source": {"draft": {"max": 4}},
            "parameters.chat_template": {"chat_template": {"name": "chatml", "file": "/x"}},
            "parameters.lora": {"lora": [{"path": "x"}]},
        },
        files={"model": file},
    )


def command_case(_: pytest.FixtureRequest) -> Case:
    """It runs the fake engine."""
    arguments = ["-m", "modelyard.servers.fake", "--address", "{address}", "--model", "{model}"]
    script = ["--apis", "chat,completions", "--tokens-per-second", "100"]
    parameters: dict[str, object] = {"arguments": [*arguments, *script], "memory": {"ram": "1MB"}}
    spec = Spec("public/name", "a" * 64, "command", parameters=parameters)
    return Case(
        engine=ENGINES["command"],
        spec=spec,
        long=spec,
        bad={
            "parameters.arguments": {"arguments": ["{adress}"]},
            "parameters.prset": {**parameters, "prset": "tgi"},
            "parameters.socket": {**parameters, "socket": "yes"},
        },
        program=sys.executable,
    )


def ollama_case(request: pytest.FixtureRequest) -> Case:
    path: Path = request.getfixturevalue("gguf")
    file = ModelFile(path, path.stat().st_size, "b" * 64, facts(read_header(path)))
    spec = Spec("public/name", "a" * 64, "ollama", str(path), {"context": 2048})
    return Case(
        engine=ENGINES["ollama"],
        spec=spec,
        long=spec,
        bad={
            "parameters.kv": {"kv": "q9"},
            "parameters.contxt": {"contxt": 1},
            "parameters.settings": {"settings": {"num_ctx": 1}},
            "source": {"url": "http://localhost:11434"},
        },
        files={"model": file},
        program="/usr/bin/ollama",
    )


def openai_case(_: pytest.FixtureRequest) -> Case:
    parameters: dict[str, object] = {"url": "https://far.example/v1"}
    spec = Spec("public/name", "a" * 64, "openai", parameters=parameters)
    return Case(
        engine=ENGINES["openai"],
        spec=spec,
        long=spec,
        bad={
            "parameters.url": {"url": "far.example"},
            "parameters.key": {**parameters, "key": "two words"},
            "parameters.apis": {**parameters, "apis": ["chats"]},
            "parameters.ky": {**parameters, "ky": "x"},
        },
        attached=True,
    )


def libretranslate_case(_: pytest.FixtureRequest) -> Case:
    parameters: dict[str, object] = {"url": "https://far.example"}
    spec = Spec("public/name", "a" * 64, "libretranslate", parameters=parameters)
    return Case(
        engine=ENGINES["libretranslate"],
        spec=spec,
        long=spec,
        bad={
            "parameters.url": {"url": "far.example"},
            "parameters.key": {**parameters, "key": "two words"},
            "parameters.ky": {**parameters, "ky": "x"},
        },
        attached=True,
        chats=False,
    )


def folder_case(engine: str, **bad: dict[str, Any]) -> Case:
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}
    spec = Spec("public/name", "a" * 64, engine, "/models/some", {"context": 2048})
    return Case(
        engine=ENGINES[engine],
        spec=spec,
        long=spec,
        bad={
            "parameters.dtype": {"dtype": "q4"},
            "parameters.contxt": {"contxt": 1},
            "parameters.draft.source": {"draft": {"max": 4}},
            **bad,
        },
        files={"model": ModelFile(Path("/models/some"), 1000, "b" * 64, {"config": config})},
        program=sys.executable,
    )


def transformers_case(_: pytest.FixtureRequest) -> Case:
    return folder_case("transformers")


def vllm_case(_: pytest.FixtureRequest) -> Case:
    return folder_case("vllm", **{"parameters.lora": {"lora": [{"path": "x"}]}})


def ctranslate2_case(_: pytest.FixtureRequest) -> Case:
    config = {"model_type": "m2m_100", "d_model": 64, "decoder_layers": 2, "vocab_size": 1000}
    spec = Spec("public/name", "a" * 64, "ctranslate2", "/models/some", slots=8)
    return Case(
        engine=ENGINES["ctranslate2"],
        spec=spec,
        long=spec,
        bad={
            "parameters.compute_type": {"compute_type": "int4"},
            "parameters.max_wait_ms": {"max_wait_ms": -1},
            "parameters.contxt": {"contxt": 1},
        },
        files={"model": ModelFile(Path("/models/some"), 1000, "b" * 64, {"config": config})},
        program=sys.executable,
        chats=False,
    )


CASES = {
    "command": command_case,
    "ctranslate2": ctranslate2_case,
    "fake": fake_case,
    "libretranslate": libretranslate_case,
    "llamacpp": llamacpp_case,
    "ollama": ollama_case,
    "openai": openai_case,
    "transformers": transformers_case,
    "vllm": vllm_case,
}


@pytest.fixture(params=sorted(ENGINES))
def case(request: pytest.FixtureRequest) -> Case:
    assert request.param in CASES, f"the adapter {request.param} has no case here"
    return CASES[request.param](request)


@pytest.mark.parametrize("check", contract.ON_PAPER, ids=lambda check: check.__name__)
def test_on_paper(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


async def test_as_a_process(case: Case) -> None:
    if case.attached:
        pytest.skip("it starts no process: its own tests have servers beside it")
    if case.engine.type in HEAVY:
        pytest.skip("tests/e2e/engines runs it")
    if case.engine.type == "llamacpp" and importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    async with running(lambda socket: contract.argv(case, case.long, socket)) as live:
        await live.healthy(case.engine.health)
        await contract.check_answers(case, live)
        await contract.check_departure(case, live)
        await contract.check_end(live)
