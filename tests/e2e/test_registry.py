"""Models registered by one request each while the demo's models serve, from every kind of source."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest
import yaml

from e2e import served
from e2e.real_models import demo_sections
from engines.demo_model import MEMBER, WHEEL, demo_gguf
from store.hub_server import REPO, hub_server
from store.s3_server import BUCKET, SECRET, USER, s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

QUESTION = "Say yes."
FIELDS = {"engine": "cpu", "parameters": {"context": 512}}


def asked(url: str, model: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120.0)
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=8
    )
    assert answer.choices[0].message.content


def left(url: str) -> list[str]:
    """Why instances left so far, by the journal that `explain` reads."""
    lines = httpx.get(f"{url}/admin/journal", timeout=30.0).text.splitlines()
    return [line for line in lines if '"leave"' in line]


def test_a_fourth_model_comes_from_everywhere_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s3").mkdir()
    content = demo_gguf().read_bytes()
    with s3_server(tmp_path / "s3") as bucket, hub_server() as hub:
        bucket.put("smol.gguf", content)
        hub.add("smol.gguf", content)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        stored = {
            "endpoint": bucket.url,
            "path_style": True,
            "access_key_id": USER,
            "secret_access_key": SECRET,
        }
        config = tmp_path / "modelyard.yaml"
        config.write_text(yaml.safe_dump({**demo_sections(), "store": {"s3": stored}}))
        sources = {
            "file": str(demo_gguf()),
            "pypi": f"pypi://{WHEEL}/{MEMBER}",
            "s3": f"s3://{BUCKET}/smol.gguf",
            "hub": f"hf://{REPO}/smol.gguf",
        }
        with served.modelyard(config, tmp_path / "data") as url:
            asked(url, "smol-fast")
            before = httpx.get(f"{url}/admin/status").json()
            for name, source in sources.items():
                made = httpx.post(f"{url}/v1/models", json={"name": name, "source": source, **FIELDS})
                assert made.status_code == 201, made.text
                asked(url, name)
                asked(url, "smol-fast")
                gone = httpx.delete(f"{url}/v1/models/{name}")
                assert gone.status_code in (202, 204), gone.text
                assert httpx.get(f"{url}/v1/models/{name}").status_code == 404
            after = httpx.get(f"{url}/admin/status").json()
            assert after["uptime"] > before["uptime"], "the same process"
            assert {model["id"] for model in after["models"]} == set(demo_sections()["models"])
            reasons = left(url)
            assert reasons
            for line in reasons:
                assert "makes room for" in line or "removed" in line, line
