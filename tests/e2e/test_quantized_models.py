"""Three quantizations of the demo's model as its three models, and what the check tells of one."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml

from e2e.served import modelyard
from engines.demo_model import demo_gguf
from modelyard.cli.perplexity import check

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
TYPES = {"smol-long": "q8_0", "smol-fast": "q4_0", "smol-wide": "q5_1"}


def test_three_quantizations_are_the_demos_three_models(tmp_path: Path) -> None:
    demo = yaml.safe_load((Path(__file__).parents[2] / "examples" / "demo.yaml").read_text())
    for name, model in demo["models"].items():
        model |= {"source": str(demo_gguf()), "quantize": TYPES[name], "load_cap": "5m", "max_wait": "8m"}
    demo |= {"server": {"data_dir": str(tmp_path / "data")}, "preload": []}
    demo["devices"] = {"ram": {"memory": "1GB"}}
    config = tmp_path / "demo.yaml"
    config.write_text(yaml.safe_dump(demo))
    versions = set()
    with modelyard(config, tmp_path) as url:
        for name in TYPES:
            messages = [{"role": "user", "content": "Say hello."}]
            answer = httpx.post(
                f"{url}/v1/chat/completions",
                json={"model": name, "messages": messages, "max_tokens": 8, "temperature": 0},
                timeout=550.0,
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"].strip()
            versions.add(answer.headers["x-modelyard-version"])
    assert len(versions) == 3
    sizes = {path.stat().st_size for path in (tmp_path / "data").rglob("blobs/sha256/*")}
    assert len(sizes) == 3, "three files of three types"


def test_the_check_measures_the_same_file_the_same() -> None:
    """And a good file far better than chance: there are 49,152 tokens."""
    found = check({"before": demo_gguf(), "after": demo_gguf()}, lambda _: None)
    before, after = found["before"], found["after"]
    assert before.words.startswith("Once upon a time")
    assert after.perplexity == pytest.approx(before.perplexity, rel=1e-3)
    assert 5 < before.perplexity < 60
    assert before.tokens > 80
