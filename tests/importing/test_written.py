"""The text of an import: it loads as what was meant, and the file is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.config import load
from modelyard.errors import ConfigError
from modelyard.importing import written
from modelyard.importing.imported import Imported, reference


def one(model: Path) -> Imported:
    result = Imported("there", found=1)
    result.models["m"] = {"source": str(model), "engine": "llamacpp", "parameters": {"context": 512}}
    return result


def test_texts_come_back_as_they_were(tmp_path: Path, model: Path) -> None:
    result = one(model)
    odd = "{%- for m in messages -%}\n  ${nothing} $${x} 'a' \"b\": # c\t\u00e9\n{% endfor %}"
    words = ["--temp", "1", "on", odd, reference("NUMBER")]
    result.models["m"]["parameters"] |= {"extra_args": words, "chat_template": {"inline": odd}}
    result.models["m"]["engine"] = result.profile("/bin/true", {"A": odd.replace("\n", " "), "B": "yes"})
    text = written.text_of(result, tmp_path / "o.yaml", {"NUMBER": "5"}, elsewhere=False)
    config = load(tmp_path / "o.yaml", text, {"NUMBER": "5"})
    assert config.models[0].spec.parameters["extra_args"] == [*words[:-1], "5"]
    assert config.models[0].spec.parameters["chat_template"] == {"inline": odd}
    assert config.profiles["llama-server"].environment["B"] == "yes"


def test_remarks_are_comments_beside_their_model(tmp_path: Path, model: Path) -> None:
    result = one(model)
    result.lose("models.m.filters", "a\nb: - [", "m")
    result.note("everywhere", "x " * 80)
    text = written.text_of(result, tmp_path / "o.yaml", {}, elsewhere=False)
    assert "  # not supported yet: filters: a b: - [\n  m:\n" in text
    assert "# note: everywhere: x x" in text.partition("models:")[0]
    assert max(map(len, text.splitlines())) <= 110


def test_models_that_the_loader_refuses_are_left_out(tmp_path: Path, model: Path) -> None:
    result = one(model)
    for name, section in (
        ("bad.policy", {"keep_alive": "soon"}),
        ("bad", {"aliases": ["m"]}),
        ("unknown", {"parameters": {"context": "big"}}),
        ("missing", {"source": "/nowhere"}),
        ("part", {"source": "hf://a/b/c-00002-of-00002.gguf"}),
    ):
        result.models[name] = {**result.models["m"], **section}
    text = written.text_of(result, tmp_path / "o.yaml", {}, elsewhere=False)
    assert [one.spec.model for one in load(tmp_path / "o.yaml", text, {}).models] == ["m"]
    assert {remark.path.split(".")[1] for remark in result.lost} == {"bad", "unknown", "missing", "part"}


def test_models_go_with_the_engine_that_the_loader_refuses(tmp_path: Path, model: Path) -> None:
    result = one(model)
    result.models["odd"] = {**result.models["m"], "engine": result.profile("", {"NOT-A-NAME": "1"})}
    text = written.text_of(result, tmp_path / "o.yaml", {}, elsewhere=False)
    assert [one.spec.model for one in load(tmp_path / "o.yaml", text, {}).models] == ["m"]
    (remark,) = result.lost
    assert remark.path == "models.odd"
    assert "engines.llama-server.environment.NOT-A-NAME is not a name" in remark.message


def test_nothing_is_put_out_unasked(tmp_path: Path) -> None:
    target = tmp_path / "o.yaml"
    written.save("a: 1\n", target, 0o640, force=False)
    with pytest.raises(ConfigError, match="is there already"):
        written.save("a: 2\n", target, 0o640, force=False)
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("a: 1\n", 0o640)
    written.save("a: 3\n", target, 0o600, force=True)
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("a: 3\n", 0o600)
    with pytest.raises(ConfigError, match="cannot write"):
        written.save("a: 4\n", tmp_path / "no" / "o.yaml", 0o600, force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["o.yaml"]
