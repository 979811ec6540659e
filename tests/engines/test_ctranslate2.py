"""The CTranslate2 adapter: its command, estimate and causes, on paper."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelyard.core.languages import Pairs
from modelyard.core.types import Address, Cause, Charge, Spec, WarmUp
from modelyard.engines.base import Command, Exit, ModelFile, Profile, Work
from modelyard.engines.ctranslate2 import PROCESS, CTranslate2Engine
from modelyard.servers.ctranslate2.parameters import parse
from modelyard.servers.translation.backends import shared_cores
from modelyard.servers.translation.families import TYPES

ENGINE = CTranslate2Engine()
PROFILE = Profile("ctranslate2", "ctranslate2")
SOCKET = Address(path="/run/i1.sock")
ON_CPU = (Charge("ram", 1),)
ON_GPU = (Charge("ram", 1), Charge("GPU-1", 1))
CONFIG: dict[str, object] = {
    "model_type": "m2m_100",
    "d_model": 1024,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "encoder_ffn_dim": 4096,
    "vocab_size": 128_112,
}
COUNT = 483_905_536
TRANSLATION = {"sources": ["en", "fr", "de"], "targets": ["en", "fr", "de"]}
FOLDER = ModelFile(
    Path("/models/m2m"),
    2 * COUNT + 5_000_000,
    "b" * 64,
    {"config": CONFIG, "dtypes": {"F16": COUNT}, "bytes": 2 * COUNT, "translation": TRANSLATION},
)
MADE = ModelFile(
    Path("/store/blob"),
    496_000_000,
    "c" * 64,
    {"kind": "ctranslate2", "config": CONFIG, "bytes": 496_000_000, "dtypes": {"int8": 496_000_000}},
)
FILES = {"model": MADE}
SPEC = Spec("m2m", "a" * 64, "ctranslate2", "hf://org/m2m", slots=64, devices=("ram",))
GPU_SPEC = replace(SPEC, devices=("GPU-1",))


def told(spec: Spec, placement: Any = ON_CPU, profile: Profile = PROFILE) -> Any:
    command = ENGINE.command(spec, profile, placement, SOCKET, FILES)
    assert isinstance(command, Command)
    assert command.own_folder
    assert command.argv[:3] == (profile.program or sys.executable, "-m", "modelyard.servers.ctranslate2")
    parse(list(command.argv[3:]))
    return json.loads(command.argv[3])


def test_a_plain_command() -> None:
    found = told(SPEC)
    assert 0 < found.pop("token_bytes") < 2_000_000
    assert found == {
        "address": "unix:/run/i1.sock",
        "model": "m2m",
        "path": "/store/blob",
        "device": "cpu",
    }
    assert told(GPU_SPEC, ON_GPU)["device"] == "cuda"


def test_every_parameter_is_told() -> None:
    parameters: dict[str, object] = {
        "compute_type": "int16",
        "replicas": 2,
        "threads": 3,
        "beam_size": 4,
        "max_batch_tokens": 1024,
        "max_wait_ms": 0,
        "max_output": 16,
    }
    spec = replace(SPEC, parameters=parameters)
    assert ENGINE.problems(spec, PROFILE) == []
    found = told(spec, profile=replace(PROFILE, program="/opt/env/bin/python"))
    assert found.items() >= parameters.items()


def test_it_takes_what_was_made_of_the_folder() -> None:
    types = {
        "auto": ("int8", "float16"),
        "int8": ("int8", "int8"),
        "float32": ("float32", "float32"),
        "int8_bfloat16": ("int8", "int8"),
        "int16": ("int16", "int16"),
    }
    for given, expected in types.items():
        for spec, form in zip((SPEC, GPU_SPEC), expected, strict=True):
            made = ENGINE.conversion(replace(spec, parameters={"compute_type": given}))
            assert made == f"ctranslate2-{form}"
            assert form in TYPES


def test_the_estimate_is_of_what_was_made_or_will_be() -> None:
    alone = replace(SPEC, parameters={"replicas": 1})
    need = ENGINE.need(alone, FILES)
    assert need.known
    (share,) = need.shares
    computed = share.bytes - PROCESS - MADE.size
    assert 200e6 < computed < 2e9
    assert share.later == computed  # an idle one shows nothing of it
    before = ENGINE.need(alone, {"model": FOLDER}).bytes
    assert before == pytest.approx(need.bytes, rel=0.02)
    small = ENGINE.need(replace(SPEC, parameters={"replicas": 1, "max_batch_tokens": 1024}), FILES).bytes
    assert need.bytes - small == pytest.approx(computed / 2, rel=0.01)
    two = ENGINE.need(replace(SPEC, parameters={"replicas": 2}), FILES).bytes
    assert two - need.bytes == pytest.approx(computed, rel=0.01)
    usual = ENGINE.need(SPEC, FILES).bytes - PROCESS - MADE.size
    assert usual == pytest.approx(shared_cores(0, 0)[0] * computed, rel=0.01)
    host, gpu = ENGINE.need(GPU_SPEC, {"model": FOLDER}).shares
    assert (host.on, gpu.on) == ("ram", "accelerator")
    assert 2 * COUNT < gpu.bytes - gpu.later < gpu.bytes
    assert not ENGINE.need(SPEC, {"model": ModelFile(Path("/m"), 1000)}).known


def test_what_it_translates() -> None:
    assert ENGINE.pairs(SPEC, {"model": FOLDER}) == Pairs(among=frozenset({"en", "fr", "de"}))
    said = Pairs(frozenset({("en", "fr")}))
    assert ENGINE.pairs(replace(SPEC, pairs=said), {"model": FOLDER}) == said
    one_way = replace(FOLDER, header={"translation": {"sources": ["en"], "targets": ["fr", "de"]}})
    assert ENGINE.pairs(SPEC, {"model": one_way}) == Pairs(frozenset({("en", "fr"), ("en", "de")}))
    assert not ENGINE.pairs(SPEC, FILES)
    assert not ENGINE.pairs(SPEC, {})


def test_the_warm_up_is_of_a_pair_that_it_has() -> None:
    (call,) = ENGINE.warm_up(SPEC)
    assert (call.path, json.loads(call.body)) == ("/translate", {"q": ["Hello"]})
    spec = replace(SPEC, pairs=Pairs(frozenset({("de", "fr")})), warm_up=WarmUp(("Hallo",)))
    (call,) = ENGINE.warm_up(spec)
    assert json.loads(call.body) == {"q": ["Hallo"], "source": "de", "target": "fr"}


def test_what_is_wrong_with_a_spec() -> None:
    half = replace(SPEC, parameters={"compute_type": "float16"})
    assert [path for path, _ in ENGINE.problems(half, PROFILE)] == ["parameters.compute_type"]
    assert ENGINE.problems(replace(half, devices=("GPU-1",)), PROFILE) == []
    assert dict(ENGINE.problems(replace(SPEC, quantize="q8_0"), PROFILE)).keys() == {"quantize"}
    assert dict(ENGINE.problems(replace(SPEC, source=""), PROFILE)).keys() == {"source"}


def test_what_is_missing_and_how_to_get_it() -> None:
    message = ENGINE.missing(replace(PROFILE, found={"numpy": "/n"}))
    assert "ctranslate2 and no Python package" not in message
    assert "no Python package ctranslate2 and no sentencepiece" in message
    assert "pip install 'modelyard[translation]'" in message
    assert not ENGINE.missing(replace(PROFILE, program="/opt/env/bin/python"))
    assert not ENGINE.missing(replace(PROFILE, found=dict.fromkeys(ENGINE.modules, "/x")))


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("RuntimeError: CUDA failed with error out of memory", Cause.OUT_OF_MEMORY),
        ("error: failed to load model: mkl_malloc: failed to allocate memory", Cause.OUT_OF_MEMORY),
        ("cannot allocate memory for thread-local data: ABORT", Cause.OUT_OF_MEMORY),
        ("No module named 'ctranslate2'; run `pip install …`", Cause.NOT_INSTALLED),
        ("couldn't bind to unix:/x: in use", Cause.PORT_IN_USE),
        ("error: invalid argument: beam: there is no such parameter", Cause.BAD_ARGUMENTS),
        (
            "error: failed to load model: CannotLoad: there is no type 'float16' on this cpu",
            Cause.BAD_ARGUMENTS,
        ),
        ("error: failed to load model: BadFile: /x: is not whole", Cause.BAD_MODEL),
    ],
)
def test_why_it_ended(log: str, cause: Cause) -> None:
    assert ENGINE.cause(Exit(1), log) is cause


def test_what_it_says_of_its_work() -> None:
    stats = b'{"processing": 3, "batch": 17, "batches": 5}'
    assert ENGINE.count_busy(stats) == 3
    assert ENGINE.read_work(stats) == Work(17)
    with pytest.raises(ValueError, match="does not tell"):
        ENGINE.count_busy(b"{}")
