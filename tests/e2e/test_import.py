"""A llama-swap configuration and an Ollama store, imported and served; clients go on as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
import yaml

from cli.command_line import run
from e2e import served
from engines.demo_model import demo_gguf
from importing.stores import add_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SWAP = """
# what a home server has
healthCheckTimeout: 120
globalTTL: 600
logLevel: info

macros:
  models: {folder}
  ctx: 2048
  server: |
    llama-server --host 127.0.0.1 --port ${{PORT}} --jinja
    --threads 1 -ngl 99

models:
  smol:
    cmd: |
      ${{server}}
      # the whole path, in quotes
      --model "${{models}}/{file}" \\
      -c ${{ctx}} -np 2 -ctk q8_0 -ctv q8_0 -fa on
    aliases: [gpt-4o-mini]
    ttl: 0
  vectors:
    cmd: ${{server}} -m ${{models}}/{file} -c 512 --embeddings --pooling mean
    env: [OMP_NUM_THREADS=1]
    unlisted: true
  pictures:
    cmd: docker run --rm -p ${{PORT}}:80 sd-server

hooks:
  on_startup:
    preload: [smol]
"""
QUESTION = "Say yes."


def run_import(folder: Path, *words: str) -> str:
    """What it prints; the configuration is in modelyard.yaml."""
    done = run("import", *words, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_llama_swap_set_up(tmp_path: Path) -> None:
    file = demo_gguf()
    (tmp_path / "config.yaml").write_text(SWAP.format(folder=file.parent, file=file.name))
    told = run_import(tmp_path, "llama-swap", "config.yaml")
    assert "2 of 3 models: smol, vectors" in told
    for path in ("models.vectors.unlisted", "models.pictures.cmd", "logLevel"):
        assert f"  {path}: " in told
    config = tmp_path / "modelyard.yaml"
    with (
        served.modelyard(config, tmp_path / "data") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as client,
    ):
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 6}
        stream: Any = client.chat.completions.create(model="gpt-4o-mini", temperature=0, stream=True, **asked)
        text = "".join(part.choices[0].delta.content or "" for part in stream if part.choices)
        whole = client.chat.completions.create(model="smol", temperature=0, **asked)
        assert text == whole.choices[0].message.content != ""
        vectors = client.embeddings.create(model="vectors", input=["the sea", "a tax form"])
        assert [len(vector.embedding) for vector in vectors.data] == [576, 576]
        assert {model.id for model in client.models.list()} >= {"smol", "vectors"}
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="pictures", input="x")
        status = httpx.get(f"{url}/admin/status").json()
        assert [one["slots"] for one in status["instances"] if one["model"] == "smol"] == [2]


@contextmanager
def client_of(url: str) -> Iterator[ollama.Client]:
    client = ollama.Client(host=url, timeout=120)
    with client._client:
        yield client


def talk(url: str, model: str) -> str:
    """The same for both servers: the model's answer to a prompt, with Ollama's own client."""
    asked: dict[str, Any] = {"model": model, "options": {"num_predict": 8, "temperature": 0}}
    messages = [{"role": "user", "content": QUESTION}]
    with client_of(url) as client:
        assert client.chat(messages=messages, **asked).message.content
        *_, last = client.chat(messages=messages, stream=True, **asked)
        assert last.done
        return str(client.generate(prompt="The capital of France is", raw=True, **asked).response)


def test_a_store_as_ollama_writes_it(tmp_path: Path) -> None:
    store = tmp_path / "models"
    layers = {"params": {"num_ctx": 1024, "num_thread": 1, "temperature": 0.2}, "template": "{{ .Prompt }}"}
    add_model(store, "smollm2:135m", demo_gguf(), layers)
    add_model(store, "smollm2:latest", demo_gguf(), layers)
    add_model(store, "me/long:v1", demo_gguf(), {"params": {"num_ctx": 4096, "num_thread": 1}})
    broken = add_model(store, "broken:latest", b"GGUF")
    told = run_import(tmp_path, "ollama", "--store", str(store))
    assert "2 of 3 models: smollm2:135m, me/long:v1" in told
    assert "  broken:latest: this model is left out" in told
    assert "  smollm2:135m: temperature: " in told
    assert broken.exists(), "nothing of the store is changed"
    with served.modelyard(tmp_path / "modelyard.yaml", tmp_path / "data") as url:
        for name in ("smollm2", "smollm2:latest", "smollm2:135m", "me/long:v1"):
            assert "Paris" in talk(url, name)
        with client_of(url) as client:
            listed = [model.model for model in client.list().models]
        assert listed == ["smollm2:135m", "me/long:v1"]


def test_a_store_that_ollama_wrote(tmp_path: Path) -> None:
    program = served.ollama_program()
    if program is None:
        pytest.skip("there is no ollama: scripts/build-ollama makes one")
    store = tmp_path / "models"
    with served.ollama(program, store, tmp_path / "home") as url:
        with client_of(url) as client:
            client.create(
                model="smol",
                files={"smol.gguf": client.create_blob(demo_gguf())},
                parameters={"num_ctx": 1024, "num_thread": 1, "stop": ["<|im_end|>"]},
                system="You are kind.",
            )
            client.copy("smol", "me/smol:v1")
        assert "Paris" in talk(url, "smol")
    told = run_import(tmp_path, "ollama", "--store", str(store), "--verify")
    assert "1 of 1 models: smol:latest" in told
    assert "  smol:latest: system: " in told
    (model,) = yaml.safe_load((tmp_path / "modelyard.yaml").read_text())["models"].values()
    assert Path(model["source"]).parent == store / "blobs"
    with served.modelyard(tmp_path / "modelyard.yaml", tmp_path / "data") as url:
        for name in ("smol", "smol:latest", "me/smol:v1"):
            assert "Paris" in talk(url, name)
