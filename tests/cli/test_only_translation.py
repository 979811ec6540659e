"""`modelyard serve --only translation`: nothing else is served, or has to be installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import run
from gateway.live_yard import child_yard, fake, sections, short_folder
from gateway.translation.translators import translator
from modelyard import config
from modelyard.compose import only
from modelyard.errors import ConfigError

TALK = {"engine": "vllm", "source": "hf://some/model"}
MODELS: dict[str, Any] = {"ef": translator("en-fr", aliases=["best"]), "talk": TALK, "more": fake()}
ONLY = ("--only", "translation")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="an engine that is not installed is needed")
async def test_engines_of_other_models_need_not_be_there(tmp_path: Path) -> None:
    path = tmp_path / "modelyard.yaml"
    path.write_text(sections(tmp_path, MODELS))
    without = run("serve", "-c", str(path))
    assert without.returncode == 1
    assert "models.talk.engine: vllm" in without.stderr
    with short_folder() as folder:
        async with child_yard(folder, MODELS, options=ONLY) as yard:
            answer = await yard.post("/translate", {"q": "one", "source": "en", "target": "fr"})
            assert answer.body["translatedText"] == "[fr] one"
            listed = (await yard.http.get("/v1/models")).json()["data"]
            assert [model["id"] for model in listed] == ["ef"]
            assert (await yard.http.get("/health_check")).json()["models"] == {"ef": "loaded"}
            refused = await yard.post("/v1/chat/completions", {"model": "talk", "messages": []})
            assert refused.code == "model_not_found"


def test_what_names_other_models_goes_with_them(tmp_path: Path) -> None:
    setting = {"llm": {"model": "talk"}, "fallback": {"model": "best", "text": "none"}, "pivot": ["en"]}
    text = sections(tmp_path, MODELS, preload=["ef", "more"], translation=setting)
    kept = only.translation(config.load(None, text))
    assert [model.spec.model for model in kept.models] == ["ef"]
    assert kept.preload == ("ef",)
    told = kept.translation
    assert (told.llm, told.fallback, told.fixed, told.pivot) == ("", "best", "none", ("en",))


def test_where_none_translates_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="models: none of them translates"):
        only.translation(config.load(None, sections(tmp_path, {"more": fake()})))
    path = tmp_path / "modelyard.yaml"
    path.write_text(sections(tmp_path, {"more": fake()}))
    refused = run("serve", "-c", str(path), *ONLY)
    assert (refused.returncode, "none of them translates" in refused.stderr) == (1, True)
