"""Modelyard inside a program: models come and go, text comes back, errors are ours, nothing stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelyard
from modelyard import Client, Modelyard, embed
from modelyard.errors import ConfigError, ConfigRefused, ModelNotFound, ServerUnreachable, ShuttingDown


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Modelyard]:
    with Modelyard({"server": {"data_dir": str(tmp_path / "data")}}) as live:
        yield live


def test_models_come_and_go(yard: Modelyard) -> None:
    assert yard.models() == []
    yard.add_model("echo", engine="fake", slots=2, aliases=["e"], keep_alive="1m")
    (model,) = yard.models()
    assert (model["id"], model["modelyard"]["slots"], model["modelyard"]["aliases"]) == ("echo", 2, ["e"])
    assert len(yard.generate("e", "Hello", max_tokens=5).split()) == 5
    yard.remove_model("echo")
    assert yard.models() == []
    with pytest.raises(ModelNotFound):
        yard.generate("echo", "Hello")


def test_a_file_is_applied_at_the_same_socket(yard: Modelyard, tmp_path: Path) -> None:
    file = tmp_path / "yard.yaml"
    file.write_text(f"server: {{data_dir: {tmp_path}/data, port: 1}}\nmodels: {{more: {{engine: fake}}}}")
    yard.add_model("echo", engine="fake")
    assert [one["kind"] for one in yard.apply(file, dry_run=True)["models"]] == ["added", "removed"]
    yard.apply(file)
    assert [model["id"] for model in yard.models()] == ["more"]
    yard.add_model("echo", engine="fake")
    assert [model["id"] for model in yard.models()] == ["more", "echo"]
    with pytest.raises(ConfigRefused, match=r"wrong\.yaml: No such file"):
        yard.apply(tmp_path / "wrong.yaml")


def test_streamed_text_is_the_same(yard: Modelyard) -> None:
    yard.add_model("echo", engine="fake")
    pieces = list(yard.generate("echo", "Hello", max_tokens=6, stream=True))
    assert len(pieces) == 6
    assert "".join(pieces) == yard.generate("echo", "Hello", max_tokens=6)


def test_a_model_that_is_to_be_preloaded(yard: Modelyard) -> None:
    yard.add_model("later", engine="fake")
    yard.add_model("echo", engine="fake", preload=True)
    for event in yard.events():
        if event["kind"] == "ready":
            break
    assert [one["model"] for one in yard.ps()["instances"]] == ["echo"]


def test_load_ps_and_unload(yard: Modelyard) -> None:
    yard.add_model("echo", engine="fake")
    instance = yard.load("echo")["instance"]
    assert [one["id"] for one in yard.ps()["instances"]] == [instance]
    assert yard.unload("echo")["gone"]
    assert yard.ps()["instances"] == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine": "nothing"}, "no engine profile or engine 'nothing'"),
        ({"engine": "fake", "slots": 0}, "models.new.slots"),
        ({"engine": "fake", "nonsense": 1}, "nonsense"),
        ({"engine": "fake", "aliases": ["echo"]}, "'echo' is a name of a model that is served"),
        ({"engine": "fake", "parameters": {"tokens": object()}}, "YAML has no word for"),
    ],
)
def test_a_wrong_model_changes_nothing(yard: Modelyard, fields: dict[str, object], said: str) -> None:
    yard.add_model("echo", engine="fake")
    with pytest.raises(ConfigError) as caught:
        yard.add_model("new", **fields)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert [model["id"] for model in yard.models()] == ["echo"]


def test_a_name_that_is_taken(yard: Modelyard) -> None:
    yard.add_model("echo", engine="fake")
    with pytest.raises(ConfigError, match="'echo' is a name of a model that is served"):
        yard.add_model("echo", engine="fake")


def test_unknown_models(yard: Modelyard) -> None:
    with pytest.raises(ModelNotFound):
        yard.remove_model("nothing")
    with pytest.raises(ModelNotFound):
        yard.load("nothing")


def test_a_file_and_one_more_model(tmp_path: Path) -> None:
    path = tmp_path / "yard.yaml"
    path.write_text(f"server: {{data_dir: {tmp_path}/data, port: 1}}\nmodels: {{first: {{engine: fake}}}}\n")
    with Modelyard(path) as yard:
        yard.add_model("second", engine="fake")
        assert [model["id"] for model in yard.models()] == ["first", "second"]


def test_another_client_of_its_socket(yard: Modelyard) -> None:
    yard.add_model("echo", engine="fake")
    with Client(yard.url) as client:
        assert client.generate("echo", "Hello", max_tokens=3)
        assert [model["id"] for model in client.models()] == ["echo"]


def test_it_asks_for_no_key_though_its_registry_has_some(tmp_path: Path) -> None:
    setting = {"server": {"data_dir": str(tmp_path / "data")}}
    for made in (0, 1):
        with Modelyard(setting) as yard:
            assert len(yard.call("GET", "/v1/keys")["data"]) == made
            if not made:
                yard.call("POST", "/v1/keys", {"name": "boss", "scopes": ["admin"]})
            assert yard.models() == []


def test_nothing_stays(tmp_path: Path) -> None:
    before = threading.active_count()
    yard = Modelyard({"server": {"data_dir": str(tmp_path / "data")}})
    socket = Path(yard.url.removeprefix("unix:"))
    assert socket.is_socket()
    yard.close()
    yard.close()
    assert not socket.parent.exists()
    assert threading.active_count() == before
    for call in (yard.models, yard.ps, lambda: yard.add_model("x", engine="fake")):
        with pytest.raises(ShuttingDown):
            call()


def test_a_start_that_fails_leaves_nothing() -> None:
    before = threading.active_count()
    with pytest.raises(ConfigError, match=r"models\.x"):
        Modelyard({"models": {"x": {"engine": "fake", "parameters": {"nonsense": 1}}}})
    assert threading.active_count() == before


def test_a_start_that_is_late_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    config = {"server": {"data_dir": str(tmp_path / "data")}}
    with monkeypatch.context() as hurried:
        hurried.setattr(embed, "START_DEADLINE", 0.0)
        with pytest.raises(ServerUnreachable, match="did not start within 0 s"):
            Modelyard(config)
    assert threading.active_count() == before
    with Modelyard(config) as yard:
        assert yard.models() == []


def test_a_model_that_can_never_fit(tmp_path: Path) -> None:
    device = {"kind": "declared", "memory": 10_000_000, "reserve": 0}
    with Modelyard({"server": {"data_dir": str(tmp_path)}, "devices": {"gpu0": device}}) as yard:
        with pytest.raises(
            ConfigError, match=r"models\.x: needs 11000000 bytes \(11\.0 MB\) and can never fit: the budget"
        ):
            yard.add_model("x", engine="fake", parameters={"memory": {"accelerator": 11_000_000}})
        assert yard.models() == []


def test_a_client_that_is_closed(yard: Modelyard) -> None:
    client = Client(yard.url)
    client.close()
    with pytest.raises(ServerUnreachable, match="this client was closed"):
        client.models()


def test_the_package_knows_its_names() -> None:
    assert modelyard.Client is Client
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = modelyard.Nonsense
