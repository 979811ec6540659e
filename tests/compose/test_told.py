"""`batching` and `speculative`: what a model says, in the words of its engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelyard.compose.entries import entries_of
from modelyard.compose.told import told
from modelyard.config import ConfigErrors, load
from modelyard.config.build import model_of
from modelyard.core.types import Address, Batching, Charge, Spec, Speculative
from modelyard.engines import registry
from modelyard.engines.base import Command, Engine, ModelFile, Profile
from modelyard.engines.llamacpp import LlamaCppEngine
from modelyard.runtime.devices import Devices
from modelyard.runtime.entries import Entry
from modelyard.runtime.files import _wanted
from modelyard.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("big.gguf", "small.gguf"):
        (tmp_path / name).touch()
    return tmp_path


def entries(folder: Path, **models: dict[str, Any]) -> dict[str, Entry]:
    (folder / "c.yaml").write_text(yaml.safe_dump({"models": models}))
    config = load(folder / "c.yaml")
    devices, store = Devices.discover({}, {}), Store(folder / "store")
    try:
        return entries_of(config, config.models, devices, store)
    finally:
        store.close()
        devices.close()


def big(**more: Any) -> dict[str, Any]:
    return {"engine": "llamacpp", "source": "big.gguf", **more}


def small(**more: Any) -> dict[str, Any]:
    return {"engine": "llamacpp", "source": "small.gguf", **more}


def test_llamacpp_is_told_of_both(folder: Path) -> None:
    model = big(batching={"max_tokens": 256}, speculative={"draft": "little", "tokens": 5})
    entry = entries(folder, big=model, little=small(quantize="q4_0"))["big"]
    assert entry.spec.parameters == {
        "batch": 256,
        "ubatch": 256,
        "draft": {"source": str(folder / "small.gguf"), "max": 5},
    }
    wanted = {role: (source, type) for role, source, _, type in _wanted(entry)}
    assert wanted == {
        "model": (str(folder / "big.gguf"), ""),
        "draft": (str(folder / "small.gguf"), "q4_0"),
    }
    header = {"general.architecture": "llama", "llama.feed_forward_length": 1000}
    files = {role: ModelFile(Path(f"/{role}"), 10**6, role, header) for role in wanted}
    charges = (Charge("ram", 1),)
    profile = replace(entry.profile, found={"llama-server": "/bin/llama-server"})
    made = entry.engine.command(entry.spec, profile, charges, Address(path="/s"), files)
    assert isinstance(made, Command)
    line = " ".join(made.argv)
    assert "--batch-size 256 --ubatch-size 256" in line
    assert "--spec-draft-n-max 5 --spec-type draft-simple --spec-draft-model /draft" in line
    alone = entries(folder, big=big())["big"].spec
    both, one = entry.engine.need(entry.spec, files), entry.engine.need(alone, {"model": files["model"]})
    assert both.bytes > one.bytes + 10**6 - 4 * (512 - 256) * 3000, "memory is reserved for both"


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        (big(batching={"max_wait_ms": 5}), "batching.max_wait_ms", "the engine llamacpp cannot"),
        (
            big(batching={"max_tokens": 9}, parameters={"ubatch": 9}),
            "batching.max_tokens",
            "`parameters.ubatch` says",
        ),
        (
            big(speculative={"draft": "./small.gguf", "tokens": 2}, parameters={"draft": {"max": 3}}),
            "speculative.tokens",
            "`parameters.draft.max` says it as well",
        ),
        (
            {"engine": "fake", "speculative": {"draft": "./small.gguf"}},
            "speculative.draft",
            "the engine fake cannot",
        ),
        (big(speculative={"draft": "./none.gguf"}), "speculative.draft", "none.gguf"),
        (
            big(speculative={"draft": "litle"}),
            "speculative.draft",
            "is no model with a source, and no path: one begins with / or ./; did you mean",
        ),
        (big(speculative={"tokens": 2}), "speculative.draft", "is required"),
        (big(batching={"max_size": 0}), "batching.max_size", ""),
    ],
)
def test_what_cannot_be_told(folder: Path, model: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as refused:
        entries(folder, big=model, little=small())
    (problem,) = refused.value.problems
    assert problem.path == f"models.big.{path}"
    assert message in problem.message


def test_registered_models_name_those_of_the_file(folder: Path) -> None:
    (folder / "c.yaml").write_text(yaml.safe_dump({"models": {"little": small()}}))
    base = load(folder / "c.yaml")
    fields = big(source=str(folder / "big.gguf"), speculative={"draft": "little"})
    assert model_of("big", fields, base).spec.speculative == Speculative(str(folder / "small.gguf"))


def test_versions_that_say_nothing_of_it_keep_their_names(folder: Path) -> None:
    def digest(**more: Any) -> str:
        return entries(folder, big=big(**more), little=small())["big"].spec.digest

    names = {
        digest(),
        digest(batching={"max_tokens": 8}),
        digest(speculative={"draft": "little"}),
        digest(speculative={"draft": "little", "tokens": 2}),
    }
    assert len(names) == 4
    assert digest(batching={}) == digest(), "as before there was such a field"
    told_nothing, problems = told(Spec("m", "d", "llamacpp", batching=Batching()), LlamaCppEngine())
    assert (told_nothing.parameters, problems) == ({}, [])


@pytest.mark.parametrize("engine", registry.load().values(), ids=lambda engine: engine.type)
def test_every_engine_has_the_parameters_that_it_names(engine: Engine) -> None:
    fields = ("max_size", "max_tokens", "max_wait_ms")
    batching = Batching(**{field: 64 for field in fields if f"batching.{field}" in engine.spec_fields})
    embedding = {"embedding": True} if engine.type == "transformers" else {}  # who generates waits for nobody
    speculative = Speculative("/draft", 3) if "speculative.draft" in engine.spec_fields else Speculative()
    spec = Spec("m", "d" * 64, engine.type, "/m", embedding, batching=batching, speculative=speculative)
    with_them, untold = told(spec, engine)
    assert untold == []
    profile = Profile(
        engine.type, engine.type, found={program: f"/bin/{program}" for program in engine.programs}
    )
    problems = engine.problems(with_them, profile)
    assert [one for one in problems if one not in engine.problems(spec, profile)] == []


def test_vllm_is_told_of_both() -> None:
    spec = Spec(
        "m", "d" * 64, "vllm", "/m", slots=8, batching=Batching(4, 512), speculative=Speculative("/d", 3)
    )
    engine = registry.load()["vllm"]
    with_them, _ = told(spec, engine)
    files = {role: ModelFile(Path(f"/{role}"), 10**6) for role in engine.sources(with_them)}
    profile = Profile("vllm", "vllm", program="/bin/vllm")
    made = engine.command(with_them, profile, (Charge("ram", 10**9),), Address(path="/s"), files)
    assert isinstance(made, Command)
    line = " ".join(made.argv)
    assert "--max-num-seqs 4" in line
    assert "--max-num-batched-tokens 512" in line
    assert '"model": "/draft", "num_speculative_tokens": 3' in line
