"""The transformers adapter: its command, estimate and causes, on paper."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelyard.core.types import Address, Cause, Charge, Spec, WarmUp
from modelyard.engines import transformers_memory
from modelyard.engines.base import Command, Exit, ModelFile, Profile, Work
from modelyard.engines.transformers import TransformersEngine
from modelyard.servers.transformers.parameters import parse

ENGINE = TransformersEngine()
PROFILE = Profile("transformers", "transformers")
SOCKET = Address(path="/run/i1.sock")
ON_CPU = (Charge("ram", 1),)
ON_GPU = (Charge("ram", 1), Charge("GPU-1", 1))
CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}


def file(**config: object) -> ModelFile:
    count = 134_515_008
    header = {"kind": "safetensors", "config": CONFIG | config, "dtypes": {"BF16": count}, "bytes": 2 * count}
    return ModelFile(Path("/models/smol"), 2 * count + 5_000_000, "b" * 64, header)


FILES = {"model": file()}
SPEC = Spec("smol", "a" * 64, "transformers", "hf://org/smol", slots=4)


def told(spec: Spec, placement: Any = ON_CPU, files: Any = FILES, profile: Profile = PROFILE) -> Any:
    command = ENGINE.command(spec, profile, placement, SOCKET, files)
    assert isinstance(command, Command)
    assert command.own_folder
    assert command.argv[:3] == (profile.program or sys.executable, "-m", "modelyard.servers.transformers")
    parse(list(command.argv[3:]))
    return json.loads(command.argv[3])


def test_a_plain_command() -> None:
    assert told(SPEC) == {
        "address": "unix:/run/i1.sock",
        "model": "smol",
        "path": "/models/smol",
        "context": 4096,
        "slots": 4,
        "device": "cpu",
        "sleep_folder": ".",
    }


def test_every_parameter_is_told() -> None:
    parameters: dict[str, object] = {
        "context": 2048,
        "dtype": "bfloat16",
        "attention": "flash_attention_2",
        "quantization": "bnb-4bit",
        "threads": 3,
        "batch": 1024,
        "prefix_caching": False,
        "draft": {"source": "hf://org/small", "max": 7},
    }
    files = {**FILES, "draft": replace(file(), path=Path("/models/small"))}
    spec = replace(SPEC, parameters=parameters, devices=("GPU-1",))
    assert ENGINE.problems(spec, PROFILE) == []
    assert ENGINE.sources(spec) == {"model": "hf://org/smol", "draft": "hf://org/small"}
    assert told(spec, ON_GPU, files, replace(PROFILE, program="/opt/env/bin/python")) == {
        "address": "unix:/run/i1.sock",
        "model": "smol",
        "path": "/models/smol",
        "context": 2048,
        "slots": 4,
        "device": "cuda",
        "sleep_folder": ".",
        "dtype": "bfloat16",
        "attention": "flash_attention_2",
        "quantization": "bnb-4bit",
        "threads": 3,
        "batch": 1024,
        "prefix_caching": False,
        "draft": "/models/small",
        "draft_tokens": 7,
    }
    own = {"pooling": "cls", "batch_size": 32, "max_wait_ms": 5}
    embedding = replace(SPEC, parameters={"embedding": True, **own})
    assert ENGINE.problems(embedding, PROFILE) == []
    assert {name: told(embedding)[name] for name in own} == own
    assert told(replace(SPEC, parameters={"ngram": 5}))["ngram"] == 5


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"contxt": 1}, "parameters.contxt"),
        ({"dtype": "int8"}, "parameters.dtype"),
        ({"draft": {"max": 3}}, "parameters.draft.source"),
        ({"draft": {"source": "x"}, "ngram": 3}, "parameters.ngram"),
        ({"attention": "flash_attention_2"}, "parameters.attention"),
        ({"max_wait_ms": 5}, "parameters.max_wait_ms"),
        ({"batch_size": 5, "embedding": False}, "parameters.batch_size"),
        ({"sleep_folder": "/"}, "parameters.sleep_folder"),
    ],
)
def test_what_is_wrong_is_named(parameters: dict[str, object], path: str) -> None:
    spec = replace(SPEC, parameters=parameters, devices=("ram",))
    assert [name for name, _ in ENGINE.problems(spec, PROFILE)] == [path]


def test_it_says_what_is_missing_and_believes_a_program() -> None:
    assert "pip install 'modelyard[transformers]'" in ENGINE.missing(PROFILE)
    assert "torch" in ENGINE.missing(replace(PROFILE, found={"transformers": "/x", "jinja2": "/x"}))
    assert ENGINE.missing(replace(PROFILE, program="/opt/env/bin/python")) == ""
    assert ENGINE.missing(replace(PROFILE, found=dict.fromkeys(ENGINE.modules, "/x"))) == ""
    assert dict(ENGINE.problems(replace(SPEC, source=""), PROFILE)).keys() == {"source"}


def test_the_need_is_weights_cache_and_process_where_they_lie() -> None:
    on_cpu = ENGINE.need(replace(SPEC, devices=("ram",)), FILES)
    (ram,) = on_cpu.shares
    token = 30 * 2 * 3 * 64 * 4
    weights = 134_515_008 * 4 + 5_000_000
    assert ram.on == "ram"
    assert weights + 4 * 4096 * token < ram.bytes < weights + 4 * 4096 * token + 600_000_000
    assert on_cpu.known
    host, gpu = ENGINE.need(SPEC, FILES).shares
    assert (host.on, gpu.on) == ("ram", "accelerator")
    assert gpu.bytes < ram.bytes + 600_000_000
    half = replace(SPEC, devices=("ram",), parameters={"dtype": "bfloat16"})
    assert ENGINE.need(half, FILES).bytes < on_cpu.bytes - 134_515_008 * 2
    two = {**FILES, "draft": file()}
    assert ENGINE.need(SPEC, two).bytes > ENGINE.need(SPEC, FILES).bytes + 2 * 134_515_008
    assert not ENGINE.need(SPEC, {"model": ModelFile(Path("/x"), 1000)}).known


def test_a_prompt_that_is_computed_whole_takes_more() -> None:
    token = (3 * 1536 + 6 * 576) * 4

    def more(parameters: dict[str, object], than: dict[str, object]) -> int:
        spec = replace(SPEC, devices=("ram",))
        needs = (ENGINE.need(replace(spec, parameters=one), FILES).bytes for one in (parameters, than))
        return next(needs) - next(needs)

    assert more({"ngram": 4}, {}) == (4 * 4096 - 512) * token
    embedding: dict[str, object] = {"embedding": True}
    assert more({"context": 4096} | embedding, {"context": 256} | embedding) == (4096 - 512) * token
    assert more({"batch": 9000} | embedding, embedding) == (9000 - 4096) * token


def test_it_sleeps_with_its_weights_in_a_file_or_in_host_memory() -> None:
    (file_rung,) = ENGINE.rungs(replace(SPEC, devices=("ram",)), FILES)
    (ram_rung,) = ENGINE.rungs(SPEC, FILES)
    weights = 134_515_008 * 2
    assert (file_rung.name, [share.on for share in file_rung.shares]) == ("file", ["ram"])
    assert file_rung.shares[0].bytes < ENGINE.need(replace(SPEC, devices=("ram",)), FILES).bytes - 2 * weights
    assert (ram_rung.name, [share.on for share in ram_rung.shares]) == ("ram", ["ram", "accelerator"])
    host, gpu = ENGINE.need(SPEC, FILES).shares
    assert ram_rung.shares[0].bytes == pytest.approx(host.bytes + weights, abs=6_000_000)
    assert ram_rung.shares[1].bytes < gpu.bytes - weights
    assert [call.path for call in (*ram_rung.sleep, *ram_rung.wake)] == ["/sleep", "/wake"]


def test_what_was_converted_at_its_load_takes_time_to_sleep_for_the_first_time() -> None:
    def first(spec: Spec, header: Any = FILES) -> float:
        return ENGINE.rungs(spec, header)[0].first

    on_ram = replace(SPEC, devices=("ram",))
    as_stored = replace(on_ram, parameters={"dtype": "bfloat16"})
    assert first(on_ram) == pytest.approx(134_515_008 * 4 / 100e6)
    assert first(as_stored) == 0
    assert first(replace(on_ram, parameters={"dtype": "float16"})) == pytest.approx(134_515_008 * 2 / 100e6)
    assert first(SPEC) == 0, "a GPU's weights go to host memory"
    unread = replace(FILES["model"], header={"kind": "safetensors", "config": CONFIG})
    assert first(as_stored, {"model": unread}) > 2


@pytest.mark.parametrize("parameters", [{"quantization": "fp8"}, {"draft": {"source": "x"}}])
def test_what_was_changed_at_its_load_does_not_sleep(parameters: dict[str, object]) -> None:
    assert ENGINE.rungs(replace(SPEC, parameters=parameters), FILES) == ()
    assert ENGINE.rungs(SPEC, {"model": file(quantization_config={"bits": 4})}) == ()


def test_a_model_that_embeds_is_told_by_its_config() -> None:
    assert ENGINE.suited(SPEC, {"model": file(architectures=["BertModel"])}) == {"embedding": True}
    assert ENGINE.suited(SPEC, FILES) == {}
    vectors = replace(SPEC, parameters={"embedding": True})
    assert ENGINE.paths(vectors) == {"/v1/embeddings", "/tokenize", "/detokenize"}
    (call,) = ENGINE.warm_up(vectors)
    assert call.path == "/v1/embeddings"
    prefixes = replace(vectors, warm_up=WarmUp(prefixes=("Be brief.",)))
    assert [path for path, _ in ENGINE.problems(prefixes, PROFILE)] == ["warm_up.prefixes"]
    assert ENGINE.need(vectors, FILES).bytes < ENGINE.need(SPEC, FILES).bytes


def test_the_context_is_said_or_known_or_usual() -> None:
    assert ENGINE.context(SPEC, FILES) == 4096
    assert ENGINE.context(SPEC, {"model": file(max_position_embeddings=512)}) == 512
    assert ENGINE.context(replace(SPEC, parameters={"context": 9000}), {}) == 9000
    assert ENGINE.context(replace(SPEC, parameters={"context": 0}), FILES) == 8192
    assert ENGINE.context(SPEC, {}) is None
    assert told(replace(SPEC, parameters={"context": 0}))["context"] == 8192


def test_how_many_it_processes() -> None:
    assert ENGINE.count_busy(b'{"processing": 3, "waiting": 1}') == 3
    assert ENGINE.read_work(b'{"processing": 3, "kv_use": 0.25}') == Work(3, 0.25)
    assert ENGINE.read_work(b'{"processing": 1, "drafted": 8, "accepted": 6}') == Work(1, None, 0.75)
    assert ENGINE.read_work(b'{"processing": 0}') == Work(0)
    assert ENGINE.read_work(b'{"processing": 2, "batch": 9}') == Work(9), "inputs, of a model that embeds"
    with pytest.raises(ValueError, match="does not tell"):
        ENGINE.count_busy(b"[]")


@pytest.mark.parametrize(
    ("exit", "log", "cause"),
    [
        (Exit(0), "", Cause.EXITED),
        (Exit(1), "error: failed to load model: OutOfMemoryError: CUDA out of memory.", Cause.OUT_OF_MEMORY),
        (Exit(1), "DefaultCPUAllocator: can't allocate memory: you tried to", Cause.OUT_OF_MEMORY),
        (Exit(1), "error: failed to load model: OSError: no file named", Cause.BAD_MODEL),
        (Exit(2), "error: invalid argument: context", Cause.BAD_ARGUMENTS),
        (Exit(1), "/opt/python: No module named modelyard", Cause.NOT_INSTALLED),
        (Exit(1), "couldn't bind to unix:/x: [Errno 98]", Cause.PORT_IN_USE),
        (Exit(1), "error: the model has failed: CUDA error", Cause.CRASHED),
        (Exit(None, 9), "", Cause.KILLED),
        (Exit(None, 11), "", Cause.CRASHED),
    ],
)
def test_causes(exit: Exit, log: str, cause: Cause) -> None:
    assert ENGINE.cause(exit, log) is cause


TRANSLATING = {
    "model_type": "m2m_100",
    "d_model": 1024,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "vocab_size": 128_112,
}


def test_a_model_that_translates() -> None:
    count = 483_905_536
    header = {
        "config": TRANSLATING,
        "dtypes": {"F16": count},
        "bytes": 2 * count,
        "translation": {"sources": ["en", "fr"], "targets": ["en", "fr"]},
    }
    files = {"model": ModelFile(Path("/models/m2m"), 2 * count, "b" * 64, header)}
    plain = replace(SPEC, slots=64, devices=("ram",))
    assert ENGINE.suited(plain, files) == {"translation": True}
    assert ENGINE.suited(plain, {"model": file()}) == {}
    spec = replace(plain, parameters={"translation": True, "batch": 1024, "beam_size": 1})
    assert ENGINE.suited(spec, files) == {}
    assert ENGINE.problems(spec, PROFILE) == []
    found = told(spec, files=files)
    assert (found["translation"], found["batch"], found["beam_size"]) == (True, 1024, 1)
    assert ENGINE.paths(spec) == {"/translate"}
    assert ("en", "fr") in ENGINE.pairs(spec, files)
    assert not ENGINE.pairs(plain, files)
    assert not ENGINE.rungs(spec, files)
    (call,) = ENGINE.warm_up(spec)
    assert call.path == "/translate"
    (share,) = ENGINE.need(spec, files).shares
    computed = 1024 * found["token_bytes"]
    assert share.bytes == transformers_memory.PROCESS + 4 * count + computed
    assert share.later == computed
    _, gpu = ENGINE.need(replace(spec, devices=("GPU-1",)), files).shares
    assert gpu.bytes == transformers_memory.CUDA_CONTEXT + 2 * count + computed // 2
    assert gpu.later == computed // 2


def test_what_a_model_that_translates_has_not() -> None:
    spec = replace(SPEC, parameters={"translation": True, "context": 512, "pooling": "cls"})
    assert dict(ENGINE.problems(spec, PROFILE)).keys() == {"parameters.context", "parameters.pooling"}
    prefixed = replace(SPEC, parameters={"translation": True}, warm_up=WarmUp((), ("Be brief.",)))
    assert dict(ENGINE.problems(prefixed, PROFILE)).keys() == {"warm_up.prefixes"}
    generating = replace(SPEC, parameters={"beam_size": 2})
    assert dict(ENGINE.problems(generating, PROFILE)).keys() == {"parameters.beam_size"}
