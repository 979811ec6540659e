"""What differs between two configurations, and which of it keeps a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelyard.config import Config, load
from modelyard.config.difference import Kind, Value, compare
from modelyard.config.reading import FilesRead
from modelyard.core.types import Policy

BASE: dict[str, Any] = {
    "engines": {"tuned": {"type": "fake", "environment": {"TOKEN": "s3cret"}, "defaults": {"seed": 1}}},
    "models": {
        "a": {"engine": "fake", "slots": 2, "parameters": {"memory": {"ram": 5}}, "aliases": ["x"]},
        "b": {"engine": "tuned"},
    },
    "keys": [{"name": "app", "key": "first", "scopes": ["inference"]}],
}


def read(**sections: Any) -> Config:
    return load(None, yaml.safe_dump({**BASE, **sections}), {"HOME": "/home/ada"})


def models(**changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """BASE's models with some fields changed; None: without it."""
    found = {**BASE["models"]}
    for name, fields in changes.items():
        if fields is None:
            del found[name]
        else:
            found[name] = {**found.get(name, {}), **fields}
    return found


def test_the_same_twice_is_no_difference() -> None:
    assert not compare(read(), read())


def test_models_come_and_go() -> None:
    found = compare(read(), read(models=models(b=None, c={"engine": "fake"}))).models
    assert [(one.name, one.kind) for one in found] == [("c", Kind.ADDED), ("b", Kind.REMOVED)]


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"keep_alive": "1m"}, Value("keep_alive", 600.0, 60.0)),
        ({"keep_alive": "forever"}, Value("keep_alive", 600.0, "forever")),
        ({"priority": "high"}, Value("priority", "normal", "high")),
        ({"pin": True}, Value("pin", False, True)),
        ({"drain_cap": "5s"}, Value("drain_cap", None, 5.0)),
        ({"aliases": ["y"]}, Value("aliases", ["x"], ["y"])),
        ({"price": {"load": 2}}, Value("price.load", 0.0, 2.0)),
    ],
)
def test_policy_and_names_keep_the_version(fields: dict[str, Any], changed: Value) -> None:
    (one,) = compare(read(), read(models=models(a=fields))).models
    assert (one.kind, one.fields) == (Kind.POLICY, (changed,))


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"slots": 3}, Value("slots", 2, 3)),
        ({"allow_pickle": True}, Value("allow_pickle", False, True)),
        ({"parallel": {"tensor": 2}}, Value("parallel.tensor", 1, 2)),
        ({"parameters": {"memory": {"ram": 6}}}, Value("parameters.memory.ram", 5, 6)),
        ({"parameters": {}}, Value("parameters.memory.ram", 5, None)),
        ({"source": "/m/a.gguf"}, Value("source", "", "/m/a.gguf")),
        ({"capabilities": ["vision"]}, Value("capabilities", [], ["vision"])),
    ],
)
def test_a_changed_spec_is_another_version(fields: dict[str, Any], changed: Value) -> None:
    (one,) = compare(read(), read(models=models(a=fields))).models
    assert (one.kind, one.fields) == (Kind.REPLACED, (changed,))


def test_a_rate_limit_is_a_policy_and_is_told_as_it_is_written() -> None:
    after = read(models=models(a={"rate_limit": {"requests": 3, "per": "10s"}}))
    (one,) = compare(read(), after).models
    told = Value("rate_limit", None, {"requests": 3, "per": 10.0})
    assert (one.kind, one.fields) == (Kind.POLICY, (told,))


def test_defaults_change_the_policy_of_all_who_do_not_say_otherwise() -> None:
    usual = Policy().patience
    after = read(defaults={"patience": "1s"}, models=models(b={"patience": f"{usual:g}s"}))
    (one,) = compare(read(), after).models
    assert (one.name, one.kind, one.fields) == ("a", Kind.POLICY, (Value("patience", usual, 1.0),))


def test_an_engine_profile_replaces_its_models_and_no_value_of_its_environment_is_repeated() -> None:
    tuned = {"type": "fake", "environment": {"TOKEN": "0ther"}, "defaults": {"seed": 2}}
    (one,) = compare(read(), read(engines={"tuned": tuned})).models
    assert (one.name, one.kind) == ("b", Kind.REPLACED)
    assert one.fields == (Value("engine.environment.TOKEN", "…", "…"), Value("parameters.seed", 1, 2))


def filled(text: str, **environ: str) -> Config:
    return load(None, text, {"HOME": "/home/ada", **environ}, engine_types={"fake"})


@pytest.mark.parametrize(
    ("text", "path", "shown"),
    [
        ("{a: {engine: fake, source: 'hf://${TOKEN}@x/y'}}", "source", "…"),
        ("{a: {engine: fake, parameters: {x: '${TOKEN}'}}}", "parameters.x", "…"),
        ("{a: {engine: fake, parameters: {x: [1, '${TOKEN}']}}}", "parameters.x", "…"),
        ("{a: {engine: fake, parameters: {x: {<<: {y: 'p${TOKEN}'}}}}}", "parameters.x.y", "…"),
        ("{a: {engine: fake, parameters: {x: '${TOKEN}', <<: {x: 'b'}}}}", "parameters.x", "…"),
        ("{a: {engine: tuned}}", "parameters.one", "…"),
        ("{a: {engine: tuned}}", "parameters.two.three", "…"),
        ("{a: {engine: tuned}}", "engine.program", "…"),
        ("{a: {engine: fake, parameters: {x: '${NOT_SET:-small}'}}}", "parameters.x", "small"),
        ("{a: {engine: fake, parameters: {api_key: abc}}}", "parameters.api_key", "…"),
        (
            "{a: {engine: fake, parameters: {args: [--api-key, s3, --ctx, 8, --hf-token=s3, -hft, s3]}}}",
            "parameters.args",
            ["--api-key", "…", "--ctx", 8, "--hf-token=…", "-hft", "…"],
        ),
        ("{a: {engine: fake, parameters: {tokens: 3}}}", "parameters.tokens", 3),
    ],
)
def test_what_may_be_a_secret_is_named_and_never_shown(text: str, path: str, shown: object) -> None:
    engines = """
engines:
  tuned:
    {type: fake, program: "/opt/${TOKEN}/run", defaults: {one: "${TOKEN}", two: {three: [x, "${TOKEN}"]}}}
"""
    before, after = (
        filled("models: {a: {engine: fake}}"),
        filled(f"{engines}\nmodels: {text}", TOKEN="s3cret"),
    )
    for change, at in ((compare(before, after), "after"), (compare(after, before), "before")):
        (one,) = change.models
        assert {field.path: getattr(field, at) for field in one.fields}[path] == shown
        assert "s3" not in str(one.fields)


def test_settings_from_the_environment_are_not_shown(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("server: {allowed_hosts: [plain, '${NAME}'], heartbeat_after: 3s}")
    after = filled(f"include: ['{more}']", NAME="hidden.example")
    assert {
        one.path: one.after for one in compare(load(None, None, {"HOME": "/home/ada"}), after).settings
    } == {
        "server.allowed_hosts": "…",
        "server.heartbeat_after": 3.0,
    }


def test_a_version_and_a_policy_at_once() -> None:
    (one,) = compare(read(), read(models=models(a={"slots": 1, "pin": True}))).models
    assert one.kind is Kind.REPLACED
    assert [field.path for field in one.fields] == ["slots", "pin"]


def test_settings_and_which_of_them_need_a_restart() -> None:
    server = {"port": 9000, "queue_bound": 7, "data_dir": "/d", "limits": {"body": 5}}
    found = compare(read(), read(server=server, devices={"ram": {"memory": "1GB"}}))
    assert {one.path: one.after for one in found.settings} == {
        "server.port": 9000,
        "server.queue_bound": 7,
        "server.data_dir": "/d",
        "server.limits.body": 5,
        "devices.ram.memory": 10**9,
    }
    assert [one.path for one in found.fixed] == ["server.data_dir", "server.port"]


def test_an_address_that_is_not_listened_on_may_change() -> None:
    sockets = [read(server={"unix": "/s"}), read(server={"unix": "/s"})]
    changed = replace(sockets[1], server=replace(sockets[1].server, port=99))
    assert [one.path for one in compare(sockets[0], changed).settings] == ["server.port"]
    assert not compare(sockets[0], changed).fixed
    assert [one.path for one in compare(sockets[0], read()).fixed] == ["server.unix"]


def test_declared_devices_neither_come_nor_go() -> None:
    pool = {"kind": "declared", "memory": 10}
    more = read(devices={"pool": {**pool, "memory": 20}})
    assert {one.path for one in compare(read(), more).fixed} == {
        f"devices.pool.{name}" for name in ("memory", "kind")
    }
    assert not compare(read(devices={"pool": pool}), more).fixed


def test_keys_are_named_and_never_shown() -> None:
    keys = [{"name": "ops", "key": "second", "scopes": ["admin"]}]
    found = compare(read(), read(keys=keys)).settings
    assert found == (
        Value("keys.app", "inference, normal at most", None),
        Value("keys.ops", None, "admin, normal at most"),
    )
    changed = [{**BASE["keys"][0], "key": "third"}]
    (one,) = compare(read(), read(keys=changed)).settings
    assert one.after == "inference, normal at most, another secret"


class TestReading:
    """Whether the files are still what was read."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        (tmp_path / "more").mkdir()
        (tmp_path / "more" / "one.yaml").write_text("models: {a: {engine: fake}}")
        path = tmp_path / "yard.yaml"
        path.write_text("include: ['more/*.yaml']")
        return path

    def test_at_rest(self, path: Path) -> None:
        reading = FilesRead()
        load(path, reading=reading)
        assert reading.unchanged()
        assert reading.changed_at == max(
            file.stat().st_ctime for file in (path, path.parent / "more" / "one.yaml")
        )

    @pytest.mark.parametrize("name", ["yard.yaml", "more/one.yaml", "more/two.yaml"])
    def test_a_file_that_changed_or_came(self, path: Path, name: str) -> None:
        reading = FilesRead()
        load(path, reading=reading)
        with (path.parent / name).open("a") as file:
            file.write("\n# more\n")
        assert not reading.unchanged()

    def test_a_lock_of_an_editor_is_no_part_of_it(self, path: Path) -> None:
        reading = FilesRead()
        load(path, reading=reading)
        (path.parent / "more" / ".#one.yaml").symlink_to("ada@host.1234:5678")
        (path.parent / "more" / ".one.yaml.swp").write_text("models: [")
        assert reading.unchanged()
        assert [one.spec.model for one in load(path).models] == ["a"]

    def test_one_that_was_not_there(self, path: Path) -> None:
        path.write_text("include: [later.yaml]")
        reading = FilesRead()
        with pytest.raises(Exception, match="is not a file"):
            load(path, reading=reading)
        assert reading.unchanged()
        (path.parent / "later.yaml").write_text("models: {}")
        assert not reading.unchanged()

    def test_files_of_an_invalid_configuration(self, path: Path) -> None:
        broken = path.parent / "more" / "one.yaml"
        broken.write_text("models:\n  a: {engine: fake, slots: none}")
        reading = FilesRead()
        with pytest.raises(Exception, match=r"models\.a\.slots: .*more/one\.yaml:2"):
            load(path, reading=reading)
        assert reading.unchanged()
        broken.write_text("models: {a: {engine: fake}}")
        assert not reading.unchanged()


def test_another_database_needs_a_restart_and_shows_no_password() -> None:
    before = read(registry={"database_url": "postgresql://ada:s3cret@db.lan/yard"})
    after = read(registry={"database_url": "postgresql://ada:an@other@db.lan/yard?password=third"})
    shown = "postgresql://ada:…@db.lan/yard"
    assert compare(before, after).fixed == (Value("registry.database_url", shown, shown),)
    assert compare(read(), before).fixed == (Value("registry.database_url", None, shown),)
