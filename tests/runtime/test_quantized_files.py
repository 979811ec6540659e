"""A version that says `quantize`: its file is made of the fetched one, and what cannot be made is refused."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateway.live_yard import LiveYard, running, sections, short_folder
from modelyard import compose, config
from modelyard.config import ConfigErrors
from modelyard.core.types import Policy, Spec
from modelyard.engines import registry
from modelyard.engines.base import Profile
from modelyard.runtime.entries import Entry, Progress
from modelyard.runtime.files import StoreFiles
from modelyard.store import LocalFiles, Store, Terms, Watch
from modelyard.store.quantize import quantize
from store.test_quantize import random_gguf

pytest.importorskip("gguf")


def entry(source: Path, type: str) -> Entry:
    spec = Spec("m", "d" * 64, "llamacpp", str(source), quantize=type)
    return Entry(spec, Policy(), registry.load()["llamacpp"], Profile("llamacpp", "llamacpp"))


async def test_its_file_is_made_and_kept(tmp_path: Path) -> None:
    steps: list[Progress] = []
    source = random_gguf(tmp_path / "f16.gguf")
    with closing(Store(tmp_path / "store")) as store:
        files = StoreFiles(store)
        plain, quantized = entry(source, ""), entry(source, "q8_0")
        assert await files.lying(quantized) is None, "its size is not told by its parent's"
        found = await files.fetch(quantized, steps.append)
        assert found["model"].header["general.file_type"] == 7
        assert found["model"].path != source
        assert await files.cached(quantized) == await files.lying(quantized) == found
        assert (await files.fetch(plain, steps.append))["model"].path == source
        assert {step.version for step in steps} == {quantized.spec.version}
        quantized.files = found
        assert await files.recheck(quantized, "a test")
        found["model"].path.unlink()
        assert not await files.recheck(quantized, "a test")
        files.let_go("a test")
        assert await files.fetch(quantized, steps.append) == found


async def test_what_it_was_made_of_may_go(tmp_path: Path) -> None:
    fetched: list[str] = []

    class Counted(LocalFiles):
        schemes: ClassVar[tuple[str, ...]] = ("counted",)

        def problem(self, source: str) -> str | None:
            return None

        def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
            fetched.append(source)
            return random_gguf(folder / "f16.gguf")

    with closing(Store(tmp_path / "store", [Counted()])) as store:
        files = StoreFiles(store)
        quantized = entry(Path("m"), "q8_0")
        quantized = Entry(
            replace(quantized.spec, source="counted://m"), Policy(), quantized.engine, quantized.profile
        )
        found = quantized.files = await files.fetch(quantized, lambda step: None)
        parent = store.cached("counted://m", Terms())
        assert parent is not None
        parent.path.unlink()
        assert await files.cached(quantized) == found
        assert await files.recheck(quantized, "a test")
        files.let_go("a test")
        assert await files.fetch(quantized, lambda step: None) == found
        assert len(fetched) == 1


async def test_what_was_quantized_already_is_shown_as_such() -> None:
    with short_folder() as folder:
        list(quantize(random_gguf(folder / "f16.gguf"), folder / "q8.gguf", "q8_0"))
        fields = {"engine": "llamacpp", "devices": ["ram"], "quantize": "q4_0"}
        models = {name: {**fields, "source": str(folder / f"{name}.gguf")} for name in ("f16", "q8")}
        yard = await compose.build(config.load(None, sections(folder, models)))
        live = LiveYard(yard, folder / "yard.sock")
        async with running(live, folder):
            for name in models:
                await live.yard.driver.fetch(yard.names.resolve(name), lambda step: None)
            shown = {one["id"]: one["quantize"] for one in (await live.http.get("/admin/models")).json()}
    assert shown == {"f16": "q4_0", "q8": "q4_0, requantized from q8_0"}


async def refusal(**fields: Any) -> tuple[str, str]:
    with short_folder() as folder:
        source = random_gguf(folder / "f16.gguf")
        model = {"engine": "llamacpp", "source": str(source), "devices": ["ram"], **fields}
        read = config.load(None, sections(folder, {"m": model}))
        with pytest.raises(ConfigErrors) as refused:
            await compose.build(read)
    (problem,) = refused.value.problems
    return problem.path, problem.message


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"quantize": "q4_km"}, "did you mean q4_k_m"),
        ({"quantize": "Q4_K_M"}, "install llama.cpp"),
        ({"quantize": "q8_0", "engine": "fake", "source": None}, "the engine fake has none"),
        (
            {"quantize": "q8_0", "source": "hf://o/r/m-00001-of-00003.gguf"},
            "in 3 files is quantized by llama-",
        ),
    ],
)
async def test_what_cannot_be_made_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], word: str
) -> None:
    monkeypatch.setenv("PATH", "")
    path, message = await refusal(**fields)
    assert path == "models.m.quantize"
    assert word in message


def test_it_is_part_of_the_version(tmp_path: Path) -> None:
    def digest(**fields: Any) -> str:
        text = sections(tmp_path, {"m": {"engine": "llamacpp", "source": "/m.gguf", **fields}})
        (model,) = config.load(None, text).models
        return model.spec.digest

    assert len({digest(), digest(quantize="q8_0"), digest(quantize="q4_0")}) == 3
    assert digest(quantize="Q8_0") == digest(quantize="q8_0")
    assert digest() == digest(warm_up={"read_ahead": True})
    assert digest() != digest(warm_up={"prompts": ["Hello"]})
