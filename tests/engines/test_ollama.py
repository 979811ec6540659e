"""The Ollama adapter: its command, what it asks Ollama for, the estimate, causes from real logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.llama_header import HEADER, KV_PER_TOKEN_AND_LAYER
from modelyard.core.types import Address, Cause, Charge, Need, Parallel, Share, Spec, WarmUp
from modelyard.engines.base import Attach, Command, Exit, Files, ModelFile, Profile
from modelyard.engines.llamacpp_memory import CUDA_CONTEXT
from modelyard.engines.ollama import SERVER, OllamaEngine
from modelyard.errors import BadGguf

ENGINE = OllamaEngine()
HERE = Profile("ollama", "ollama", found={"ollama": "/usr/bin/ollama"})
ADDRESS = Address(port=4711)
MODEL = "sha256:9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"  # of the word

KV_PER_TOKEN = 4 * KV_PER_TOKEN_AND_LAYER


def spec(parameters: Mapping[str, object] | None = None, name: str = "llama2:7b", **more: Any) -> Spec:
    return Spec(name, "d" * 64, "ollama", "m.gguf", parameters or {}, **{"devices": ("ram",), **more})


def files(*roles: str, header: Mapping[str, object] = HEADER) -> Files:
    found = {"model": ModelFile(Path("/c/m.gguf"), 5000, "m1", header)}
    return found | {role: ModelFile(Path(f"/c/{role}.gguf"), 10, role, HEADER) for role in roles}


def command(given: Spec, of: Files | None = None) -> Command:
    made = ENGINE.command(given, HERE, (), ADDRESS, of or files())
    assert isinstance(made, Command)
    return made


def created(given: Spec) -> dict[str, Any]:
    """What Ollama is asked to make."""
    call = ENGINE.warm_up(given)[0]
    assert (call.method, call.path) == ("POST", "/api/create")
    made: dict[str, Any] = json.loads(call.body)
    return made


def test_a_server_of_its_own_with_the_versions_file_alone() -> None:
    made = command(spec(slots=3))
    assert made.own_folder
    assert made.argv[1:3] == ("-m", "modelyard.servers.ollama")
    assert json.loads(made.argv[3]) == {"program": "/usr/bin/ollama", "blobs": {MODEL: "/c/m.gguf"}}
    assert made.environment == {
        "OLLAMA_HOST": "127.0.0.1:4711",
        "OLLAMA_CONTEXT_LENGTH": "4096",
        "OLLAMA_NUM_PARALLEL": "3",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_LOAD_TIMEOUT": "-1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
    }
    assert created(spec(slots=3)) == {
        "model": "llama2:7b",
        "files": {"model.gguf": MODEL},
        "parameters": {"num_gpu": 0},
        "stream": False,
    }


FULL: Mapping[str, object] = {
    "context": 2048,
    "kv": "q8_0",
    "threads": 4,
    "batch": 256,
    "mmap": True,
    "gpu_layers": 12,
    "lora": [{"source": "a.gguf"}],
    "mmproj": "p.gguf",
    "template": "{{ .Prompt }}",
    "system": "You are kind.",
    "settings": {"temperature": 0.2, "stop": ["</s>"]},
}


def test_every_parameter() -> None:
    given = spec(FULL, devices=(), parallel=Parallel(pipeline=2))
    assert ENGINE.problems(given, HERE) == []
    assert ENGINE.sources(given) == {"model": "m.gguf", "mmproj": "p.gguf", "lora": "a.gguf"}
    made = command(given, files("mmproj", "lora"))
    blobs = json.loads(made.argv[3])["blobs"]
    assert sorted(blobs.values()) == ["/c/lora.gguf", "/c/m.gguf", "/c/mmproj.gguf"]
    asked = {
        name: value for name, value in made.environment.items() if name not in command(spec()).environment
    }
    assert asked == {
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_SCHED_SPREAD": "1",
    }
    assert made.environment["OLLAMA_CONTEXT_LENGTH"] == "2048"
    body = created(given)
    assert {blobs[digest] for digest in body["files"].values()} == {"/c/m.gguf", "/c/mmproj.gguf"}
    assert [blobs[digest] for digest in body["adapters"].values()] == ["/c/lora.gguf"]
    assert body["parameters"] == {
        "temperature": 0.2,
        "stop": ["</s>"],
        "num_thread": 4,
        "num_batch": 256,
        "use_mmap": True,
        "num_gpu": 12,
    }
    assert (body["template"], body["system"]) == ("{{ .Prompt }}", "You are kind.")


@pytest.mark.parametrize(
    ("parameters", "flash"),
    [
        ({"kv": "q8_0"}, "1"),
        ({"kv": "q8_0", "flash_attention": "auto"}, "1"),
        ({"kv": "f16", "flash_attention": "auto"}, None),
        ({"flash_attention": True}, "1"),
        ({"flash_attention": False}, "0"),
    ],
)
def test_flash_attention_is_on_where_the_cache_needs_it(
    parameters: Mapping[str, object], flash: str | None
) -> None:
    assert command(spec(parameters)).environment.get("OLLAMA_FLASH_ATTENTION") == flash


def test_all_layers_are_on_an_accelerator_unless_it_is_said_otherwise() -> None:
    assert created(spec(devices=()))["parameters"] == {"num_gpu": 999}


@pytest.mark.parametrize(
    ("parameters", "path", "said"),
    [
        ({"context": -1}, "context", "whole number"),
        ({"kv": "q5_0"}, "kv", "one of f16, q8_0, q4_0"),
        ({"kv": "q8_0", "flash_attention": False}, "kv", "needs flash attention"),
        ({"settings": {"num_ctx": 1}}, "settings", "num_ctx"),
        ({"settings": "x"}, "settings", "mapping"),
        ({"lora": ["x"]}, "lora", "list of one {source}"),
        ({"lora": [{"source": "x"}, {"source": "y"}]}, "lora", "takes one adapter"),
        ({"lora": [{"source": "x", "scale": 0.5}]}, "lora", "as it is"),
        ({"keep_alive": 5}, "keep_alive", "is not a parameter of ollama"),
    ],
)
def test_what_it_does_not_take(parameters: Mapping[str, object], path: str, said: str) -> None:
    ((where, message),) = ENGINE.problems(spec(parameters), HERE)
    assert where == f"parameters.{path}"
    assert said in message


def test_a_model_that_embeds() -> None:
    pooled = files(header={**HEADER, "llama.pooling_type": 1})
    assert ENGINE.suited(spec(), pooled) == {"embedding": True}
    assert ENGINE.suited(spec(), files()) == {}
    vectors = spec({"embedding": True})
    assert ENGINE.paths(vectors) == {"/v1/embeddings"}
    assert [call.path for call in ENGINE.warm_up(vectors)] == ["/api/create", "/v1/embeddings"]
    prefixed = spec({"embedding": True}, warm_up=WarmUp(prefixes=("Be kind.",)))
    assert [path for path, _ in ENGINE.problems(prefixed, HERE)] == ["warm_up.prefixes"]


@pytest.mark.parametrize("name", ["qwen", "org/qwen-2.5", "llama2:7b-instruct", "Qwen_1"])
def test_a_name_that_ollama_takes_is_the_public_one(name: str) -> None:
    assert ENGINE.model_name(spec(name=name)) is None
    assert created(spec(name=name))["model"] == name


@pytest.mark.parametrize("name", ["a/b/c/d", "qwen@home", "a:b:c", "-x", "ü", "x" * 81])
def test_another_name_where_ollama_takes_it_not(name: str) -> None:
    given = spec(name=name)
    assert ENGINE.model_name(given) == "model"
    assert {json.loads(call.body)["model"] for call in ENGINE.warm_up(given)} == {"model"}


def test_what_it_takes_in_host_memory_and_on_accelerators() -> None:
    (one,) = ENGINE.need(spec({"context": 1024}), files()).shares
    (four,) = ENGINE.need(spec({"context": 1024}, slots=4), files()).shares
    assert four.bytes - one.bytes == 3 * 1024 * KV_PER_TOKEN
    assert one.bytes > SERVER + 4900 + 1024 * KV_PER_TOKEN
    assert not one.mapped, "on the CPU it reads its file into memory of its own"
    host, *cards = ENGINE.need(
        spec({"context": 1024}, devices=(), parallel=Parallel(pipeline=2)), files()
    ).shares
    assert sum(host.mapped.values()), "with a GPU it maps it"
    assert host.bytes > SERVER
    assert [card.on for card in cards] == ["accelerator"] * 2
    assert all(card.bytes > CUDA_CONTEXT for card in cards)


def test_files_that_it_cannot_load() -> None:
    with pytest.raises(BadGguf, match="not a GGUF file"):
        ENGINE.need(spec(), files(header={}))
    parts = (Path("/c/m-00001-of-00002.gguf"), Path("/c/m-00002-of-00002.gguf"))
    with pytest.raises(BadGguf, match="takes one file"):
        ENGINE.need(spec(), {"model": ModelFile(parts[0], 10, "m", HEADER, parts=parts)})


def test_a_machine_without_it() -> None:
    assert "ollama.com/download" in ENGINE.missing(Profile("ollama", "ollama"))
    assert ENGINE.missing(HERE) == ""
    assert ENGINE.missing(Profile("ollama", "ollama", program="/opt/ollama")) == ""


@pytest.mark.parametrize(
    ("end", "log", "cause"),
    [
        (Exit(1), "Error: listen tcp 127.0.0.1:4711: bind: address already in use", Cause.PORT_IN_USE),
        (Exit(127), "/opt/ollama cannot be executed: No such file or directory", Cause.NOT_INSTALLED),
        (Exit(1), "Error: something else", Cause.CRASHED),
        (Exit(None, 9), "", Cause.KILLED),
        (Exit(None, 15), "failed to allocate", Cause.KILLED),
        (Exit(None, 11), "", Cause.CRASHED),
        (Exit(0), "", Cause.EXITED),
        (Exit(None), "http://h has put the model out of its memory", Cause.EXITED),
    ],
)
def test_why_it_ended(end: Exit, log: str, cause: Cause) -> None:
    assert ENGINE.cause(end, log) is cause


URL = "http://127.0.0.1:11434"


def attached(parameters: Mapping[str, object] | None = None, **more: Any) -> Spec:
    return replace(spec({"url": URL, **(parameters or {})}, **more), source="")


def attach(given: Spec, *devices: str) -> Attach:
    placement = tuple(Charge(device, 0) for device in devices or ("ram",))
    made = ENGINE.command(given, Profile("ollama", "ollama"), placement, Address(), {})
    assert isinstance(made, Attach)
    return made


def running(*models: tuple[str, int, int]) -> bytes:
    """What `/api/ps` answers with."""
    listed = [{"name": name, "size": size, "size_vram": vram} for name, size, vram in models]
    return json.dumps({"models": listed}).encode()


def test_a_model_of_a_server_that_runs_already() -> None:
    given = attached({"model": "smol:q4"})
    assert ENGINE.problems(given, HERE) == []
    assert ENGINE.sources(given) == {}
    assert ENGINE.model_name(given) == "smol:q4"
    assert ENGINE.missing(Profile("ollama", "ollama", defaults=given.parameters)) == ""
    made = attach(given)
    assert made.url == URL
    (load,), (unload,) = made.load, made.unload
    assert (load.method, load.path, unload.path) == ("POST", "/api/generate", "/api/generate")
    assert json.loads(load.body) == {"model": "smol:q4", "keep_alive": -1}
    assert json.loads(unload.body) == {"model": "smol:q4", "keep_alive": 0}
    assert [call.path for call in ENGINE.warm_up(given)] == ["/v1/chat/completions"]
    assert json.loads(ENGINE.warm_up(given)[0].body)["model"] == "smol:q4"
    assert {call.path for call in (*attach(attached({"embedding": True})).load,)} == {"/api/embed"}


def test_what_it_holds_there_is_what_the_server_says() -> None:
    held = attach(attached(name="smol")).held
    assert held is not None
    assert (held.call.method, held.call.path) == ("GET", "/api/ps")
    assert held.count(running(("other:latest", 5, 0), ("smol:latest", 100, 0))) == {"ram": 100}
    assert held.count(running(("other:latest", 5, 0))) is None
    for wrong in (b"{}", b'{"models": [{"name": "smol:latest"}]}', b"[]", b"what?"):
        with pytest.raises(ValueError):
            held.count(wrong)
    on_card = attach(attached(name="smol:q4", devices=()), "ram", "GPU-1").held
    assert on_card is not None
    assert on_card.count(running(("smol:q4", 100, 80))) == {"ram": 20, "GPU-1": 80}


@pytest.mark.parametrize("url", [URL, "http://localhost:1/x", "http://[::1]:5"])
def test_memory_on_this_machine_is_learned(url: str) -> None:
    assert ENGINE.need(attached({"url": url}), {}) == Need((Share("ram", 0),), known=False)
    shares = ENGINE.need(attached({"url": url}, devices=()), {}).shares
    assert [share.on for share in shares] == ["ram", "accelerator"]


def test_memory_elsewhere_does_not_count() -> None:
    given = attached({"url": "https://ollama.example.com"}, name="smol")
    assert ENGINE.need(given, {}) == Need((Share("ram", 0),))
    held = attach(given).held
    assert held is not None
    assert held.count(running(("smol:latest", 100, 0))) == {}
    assert held.count(running()) is None


@pytest.mark.parametrize(
    ("parameters", "path", "said"),
    [
        ({"url": "127.0.0.1:11434"}, "parameters.url", "must be an address"),
        ({"url": "http://h:port"}, "parameters.url", "must be an address"),
        ({"url": "http://h/a b"}, "parameters.url", "must be an address"),
        ({"url": "http://me:word@h"}, "parameters.url", "must be without a user"),
        ({"url": "http://h?q=1"}, "parameters.url", "must be without a user"),
        ({"kv": "q8_0"}, "parameters.kv", "is not a parameter of an ollama that runs already"),
    ],
)
def test_what_it_does_not_take_there(parameters: Mapping[str, object], path: str, said: str) -> None:
    ((where, message),) = ENGINE.problems(attached(parameters), HERE)
    assert where == path
    assert said in message
    ((where, _),) = ENGINE.problems(spec({"url": URL}), HERE)
    assert where == "source"


@pytest.mark.parametrize(
    "said",
    [
        '500: {"error":"model requires more system memory (175.8 GiB) than is available (20.1 GiB)"}',
        '500: {"error":"llama runner process has terminated: signal: killed"}',
    ],
)
def test_a_model_that_does_not_load_for_want_of_memory(said: str) -> None:
    assert ENGINE.cause(Exit(1), said) is Cause.OUT_OF_MEMORY
