"""A good configuration becomes the values that it says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from math import inf
from pathlib import Path

import pytest

from modelyard.config import Config, ConfigErrors, DeviceSetting, Limits, Model, Scope, json_schema, load
from modelyard.config.listen import check_protected
from modelyard.core.types import Parallel, Policy, Price, Priority, RateLimit, WhenFull
from modelyard.engines.base import Profile

EXAMPLES = Path(__file__).parents[2] / "examples"
HOME = {"HOME": "/home/ada"}


def text(content: str, environ: dict[str, str] | None = None, path: Path | None = None) -> Config:
    return load(path, content, {**HOME, **(environ or {})})


def model(config: Config, name: str) -> Model:
    return next(model for model in config.models if model.spec.model == name)


def test_nothing_gives_the_defaults() -> None:
    config = load(None, None, HOME)
    assert (config.server.host, config.server.port, config.server.unix) == ("127.0.0.1", 8080, None)
    assert config.server.data_dir == Path("/home/ada/.local/share/modelyard")
    assert config.server.limits == Limits(body=32 * 2**20, connections=1024)
    assert (config.server.queue_bound, config.server.heartbeat_after, config.recheck) == (1024, 10, 10)
    assert (config.models, config.keys, config.preload, config.preload_auto) == ((), (), (), False)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_DATA_HOME": "/data"}, "/data/modelyard"),
        ({"XDG_DATA_HOME": "relative"}, "/home/ada/.local/share/modelyard"),
        ({"XDG_DATA_HOME": ""}, "/home/ada/.local/share/modelyard"),
    ],
)
def test_the_data_folder_follows_xdg(environ: dict[str, str], folder: str) -> None:
    assert load(None, None, {**HOME, **environ}).server.data_dir == Path(folder)


def test_server() -> None:
    server = text(
        "server: {port: 0, data_dir: ~/yard, drain_grace: 1m, heartbeat_after: 0, queue_bound: 5,"
        " limits: {body: 1MiB, header_timeout: 500ms}, allowed_hosts: yard.lan,"
        " allowed_origins: ['https://chat.lan']}"
    ).server
    assert (server.port, server.data_dir) == (0, Path("/home/ada/yard"))
    assert (server.drain_grace, server.heartbeat_after, server.queue_bound) == (60, 0, 5)
    assert server.limits == Limits(body=2**20, header_timeout=0.5)
    assert (server.allowed_hosts, server.allowed_origins) == (("yard.lan",), ("https://chat.lan",))


def test_a_unix_socket_beside_the_file(tmp_path: Path) -> None:
    assert text("server: {unix: ./yard.sock}", path=tmp_path / "c.yaml").server.unix == tmp_path / "yard.sock"


@pytest.mark.parametrize(
    "server",
    [
        "{host: 127.0.0.9}",
        "{host: '::1'}",
        "{host: localhost}",
        "{host: 0.0.0.0, allow_unauthenticated: true}",
    ],
)
def test_addresses_that_need_no_keys(server: str) -> None:
    check_protected(text(f"server: {server}"))


def test_an_open_address_needs_keys() -> None:
    check_protected(text("server: {host: 0.0.0.0}\nkeys: [{name: me, key: s3cret, scopes: admin}]"))
    for host in ("0.0.0.0", "yard.lan"):
        with pytest.raises(ConfigErrors, match="allow_unauthenticated: true") as caught:
            check_protected(text(f"server: {{host: {host}}}"))
        assert caught.value.path == "server.host"


def test_a_model_with_everything() -> None:
    config = text(
        """
engines:
  cpp: {type: llamacpp, program: ./bin/llama-server, environment: {OMP_NUM_THREADS: 4}, devices: [ram],
        defaults: {threads: 2, mmap: true}}
models:
  org/qwen-2.5:7b:
    source: ./qwen.gguf
    engine: cpp
    slots: 4
    capabilities: [chat, vision]
    aliases: [qwen, gpt-4o]
    parameters: {mmap: false, draft: {source: ../draft.gguf}, lora: [./a.gguf]}
    priority: high
    when_full: wait
    keep_alive: forever
    pin: true
    home: true
    preload: true
    min_replicas: 1
    max_replicas: 2
    patience: 1s
    min_residency: 0
    drain_cap: 30s
    release_cap: 5s
    load_cap: 1m
    max_wait: 1m
    request_timeout: 2m
    first_byte_timeout: 20s
    token_timeout: 10s
    queue_bound: 9
    overcommit: 1
    rate_limit: {requests: 60}
""",
        path=Path("/etc/yard/c.yaml"),
    )
    one = model(config, "org/qwen-2.5:7b")
    assert config.profiles["cpp"] == Profile(
        "cpp",
        "llamacpp",
        "/etc/yard/bin/llama-server",
        {"OMP_NUM_THREADS": "4"},
        ("ram",),
        {"threads": 2, "mmap": True},
    )
    assert (one.spec.source, one.spec.engine, one.spec.slots) == ("/etc/yard/qwen.gguf", "cpp", 4)
    assert one.spec.devices == ("ram",)
    assert one.spec.capabilities == {"chat", "vision"}
    assert one.spec.parameters == {
        "threads": 2,
        "mmap": False,
        "draft": {"source": "/etc/draft.gguf"},
        "lora": ["/etc/yard/a.gguf"],
    }
    assert one.aliases == ("qwen", "gpt-4o")
    assert one.policy == Policy(
        priority=Priority.HIGH, when_full=WhenFull.WAIT, keep_alive=inf, pin=True, home=True, preload=True,
        min_replicas=1, max_replicas=2, patience=1, min_residency=0, drain_cap=30, release_cap=5, load_cap=60,
        max_wait=60, request_timeout=120, first_byte_timeout=20, token_timeout=10,
        queue_bound=9, overcommit=1, rate_limit=RateLimit(60, 60.0),
    )  # fmt: skip
    assert config.preload == ("org/qwen-2.5:7b",)


def test_defaults_hold_for_all_and_yield_to_the_model() -> None:
    config = text(
        "defaults: {keep_alive: 1m, pin: true}\nmodels: {a: {engine: fake}, b: {engine: fake, pin: false}}"
    )
    assert model(config, "a").policy == Policy(keep_alive=60, pin=True)
    assert model(config, "b").policy == Policy(keep_alive=60, pin=False)


def test_an_engine_type_is_a_profile_of_its_own() -> None:
    config = text("models: {a: {engine: fake}}")
    assert config.profiles == {"fake": Profile("fake", "fake")}
    assert model(config, "a").spec.engine == "fake"


def test_empty_sections_are_as_good_as_none() -> None:
    config = text("server:\nengines:\nkeys:\nmodels:\n  a:\n    engine: fake\n    parameters:\n")
    assert [one.spec.model for one in config.models] == ["a"]


def test_preload_keeps_its_order() -> None:
    config = text(
        "preload: [b, a]\nmodels: {a: {engine: fake}, b: {engine: fake}, c: {engine: fake, preload: true},"
        " d: {engine: fake}}"
    )
    assert config.preload == ("b", "a", "c")
    assert [one.policy.preload for one in config.models] == [True, True, True, False]


def test_preload_auto() -> None:
    config = text("preload: auto\nmodels: {a: {engine: fake}}")
    assert (config.preload, config.preload_auto) == ((), True)


def test_devices_and_memory() -> None:
    config = text(
        "memory: {recheck: 3s}\n"
        "devices: {ram: {memory: 600MB, reserve: 0}, gpu0: {kind: declared, memory: 24GB}}"
    )
    assert config.recheck == 3
    assert config.devices == {
        "ram": DeviceSetting(600_000_000, 0),
        "gpu0": DeviceSetting(24 * 10**9, None, "declared"),
    }


# -- keys ------------------------------------------------------------------------------------------------


def test_keys_are_kept_as_digests_only() -> None:
    digest = sha256(b"from the file").hexdigest()
    config = text(
        "keys:\n- {name: ci, key: '${CI_KEY}', scopes: [inference], max_priority: low}\n"
        f"- {{name: ada, hash: 'sha256:{digest.upper()}', scopes: [inference, admin]}}",
        {"CI_KEY": "0123456789"},
    )
    ci, ada = config.keys
    assert (ci.scopes, ci.max_priority) == (frozenset({Scope.INFERENCE}), Priority.LOW)
    assert (ada.scopes, ada.max_priority) == (frozenset(Scope), Priority.NORMAL)
    assert ci.digest == sha256(b"0123456789").hexdigest()
    assert ada.digest == digest
    assert "0123456789" not in repr(config)
    assert ci.digest not in repr(config)


def test_environments_are_not_in_the_representation() -> None:
    config = text("engines: {v: {type: fake, environment: {HF_TOKEN: '${T}'}}}", {"T": "hf_token_value"})
    assert config.profiles["v"].environment == {"HF_TOKEN": "hf_token_value"}
    assert "hf_token_value" not in repr(config)


# -- interpolation, anchors, includes --------------------------------------------------------------------


def test_interpolation() -> None:
    config = text(
        """
server: {port: "${PORT}", allow_unauthenticated: "${OPEN}"}
models:
  a:
    engine: ${ENGINE:-fake}
    source: /models/${NAME}-${SIZE:-7b}.gguf
    parameters:
      context: ${CONTEXT:-4096}
      quoted: "${CONTEXT:-4096}"
      empty: "${EMPTY:-set}"
      literal: $${HOME} costs $5
""",
        {"PORT": "9000", "OPEN": "true", "NAME": "qwen", "EMPTY": ""},
    )
    assert (config.server.port, config.server.allow_unauthenticated) == (9000, True)
    spec = model(config, "a").spec
    assert spec.source == "/models/qwen-7b.gguf"
    assert spec.parameters == {
        "context": 4096,
        "quoted": "4096",
        "empty": "set",
        "literal": "${HOME} costs $5",
    }


def test_the_environment_adds_no_structure() -> None:
    config = text("models: {a: {engine: fake, source: '${S}'}}", {"S": "/x\n  pin: true # ${HOME}"})
    assert model(config, "a").policy.pin is False
    assert model(config, "a").spec.source == "/x\n  pin: true # ${HOME}"


def test_anchors_and_merges() -> None:
    config = text("models:\n  a: &a {engine: fake, slots: 2, pin: true}\n  b: {<<: *a, slots: 3}\n")
    b = model(config, "b")
    assert (b.spec.slots, b.policy.pin, b.spec.engine) == (3, True, "fake")


def test_included_files_join_and_keep_their_folders(tmp_path: Path) -> None:
    (tmp_path / "conf.d" / "more").mkdir(parents=True)
    (tmp_path / "c.yaml").write_text(
        "include: [conf.d/*.yaml, conf.d/b.yaml]\nmodels: {a: {engine: fake}}\n"
        "keys: [{name: a, key: aa, scopes: admin}]\n"
    )
    (tmp_path / "conf.d" / "b.yaml").write_text(
        "include: more/c.yaml\nmodels:\n  b: {engine: fake, source: ./b.gguf}\npreload: [b]\n"
    )
    (tmp_path / "conf.d" / "more" / "c.yaml").write_text(
        "include: ../*.yaml\nmodels: {c: {engine: fake, source: ../c.gguf}}\n"
        "keys: [{name: c, key: cc, scopes: admin}]\n"
    )
    config = load(tmp_path / "c.yaml", environ=HOME)
    assert [one.spec.model for one in config.models] == ["a", "b", "c"]
    assert model(config, "b").spec.source == f"{tmp_path}/conf.d/b.gguf"
    assert model(config, "c").spec.source == f"{tmp_path}/conf.d/c.gguf"
    assert [key.name for key in config.keys] == ["a", "c"]
    assert where(config, "models.b.source") == f"{tmp_path}/conf.d/b.yaml:3"
    assert where(config, "keys[1].scopes").endswith("more/c.yaml:3")
    assert config.preload == ("b",)


def where(config: Config, path: str) -> str:
    (problem,) = config.failure([(path, "is wrong")]).problems
    return problem.where


def test_a_problem_found_later_is_placed(tmp_path: Path) -> None:
    config = text(
        "models:\n  qwen-2.5:\n    engine: fake\n    parameters:\n      context: 0\n",
        path=tmp_path / "c.yaml",
    )
    path = f"{config.models[0].path}.parameters.context"
    assert path == "models.qwen-2.5.parameters.context"
    assert (
        str(config.failure([(path, "must be 1 or more")]))
        == f"{path}: must be 1 or more ({tmp_path}/c.yaml:5)"
    )
    assert where(config, "models.qwen-2.5.parameters.other") == f"{tmp_path}/c.yaml:4"


# -- versions --------------------------------------------------------------------------------------------

_SPEC = """
engines: {{p: {{type: fake, environment: {{A: {env}}}, defaults: {{seed: {seed}}}}}}}
models: {{a: {{engine: p, source: /m.gguf, slots: {slots}, parameters: {{context: {context}}}, {policy}}}}}
"""


def digest(**changed: object) -> str:
    values = {"env": 1, "seed": 1, "slots": 1, "context": 1, "policy": "pin: false", **changed}
    return text(_SPEC.format(**values)).models[0].spec.digest


def test_the_same_text_is_the_same_version() -> None:
    assert digest() == digest()
    assert len(digest()) == 64


_OTHER_PROCESS = """
import sys
from modelyard.config import load
print(load(None, sys.argv[1], {"TOKEN": "weak"}, engine_types={"fake"}).models[0].spec.digest)
"""


@pytest.mark.parametrize(
    ("written", "salted"),
    [
        ("models: {a: {engine: fake, source: '/${TOKEN}/m.gguf', parameters: {tokens: 3}}}", False),
        ("models: {a: {engine: fake, parameters: {x: ['${TOKEN}']}}}", True),
        ("models: {a: {engine: fake, parameters: {extra_args: [--api-key, weak]}}}", True),
        ("models: {a: {engine: p}}\nengines: {p: {type: fake, environment: {A: weak}}}", True),
        ("models: {a: {engine: p}}\nengines: {p: {type: fake, defaults: {x: '${TOKEN}'}}}", True),
        ("models: {a: {engine: p}}\nengines: {p: {type: fake, defaults: {x: 1}}}", False),
    ],
)
def test_a_digest_of_what_may_be_a_secret_is_of_no_use_to_who_tries_secrets(
    written: str, salted: bool
) -> None:
    here = load(None, written, {"TOKEN": "weak"}, engine_types={"fake"}).models[0].spec.digest
    again = load(None, written, {"TOKEN": "weak"}, engine_types={"fake"}).models[0].spec.digest
    there = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, written],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    ).stdout.strip()
    assert here == again
    assert (here != there) is salted


def test_a_price_is_the_model_s_or_that_of_the_defaults() -> None:
    config = text(
        """
        defaults: {price: {input: "${PER_MILLION:-0.15}", load: 1}}
        models:
          a: {engine: fake}
          b: {engine: fake, price: {output: 0.6}}
          c: {engine: fake, price: }
        """,
        {"PER_MILLION": "2.5"},
    )
    prices = {one.spec.model: one.price for one in config.models}
    assert prices == {"a": Price(2.5, load=1.0), "b": Price(output=0.6), "c": Price(2.5, load=1.0)}
    assert model(text("models: {a: {engine: fake}}"), "a").price == Price()


@pytest.mark.parametrize("price", ["-1", ".inf", ".nan", "true", "1000000001", "much", "1e400"])
def test_what_is_no_price_is_refused(price: str) -> None:
    with pytest.raises(ConfigErrors, match=r"models\.a\.price\.load: is not a price"):
        text(f"models: {{a: {{engine: fake, price: {{load: {price}}}}}}}")


def test_policy_makes_no_new_version() -> None:
    assert digest(policy="pin: true, max_wait: 1s, aliases: [b]") == digest()


@pytest.mark.parametrize("changed", ["env", "seed", "slots", "context"])
def test_what_is_run_makes_a_new_version(changed: str) -> None:
    assert digest(**{changed: 2}) != digest()


def test_values_are_frozen() -> None:
    config = text("models: {a: {engine: fake}}")
    with pytest.raises(AttributeError):
        config.recheck = 1.0  # type: ignore[misc]
    assert replace(config, recheck=1.0).recheck == 1.0


@pytest.mark.parametrize(
    ("section", "size"),
    [
        ("", 64 * 2**20),
        ("journal: {bytes: 2MiB}", 2 * 2**20),
        ("journal: {enabled: false, bytes: 2MiB}", 0),
    ],
)
def test_the_journal_s_size(section: str, size: int) -> None:
    assert text(f"models: {{a: {{engine: fake}}}}\n{section}").journal == size


def test_parallelism_is_a_part_of_a_version() -> None:
    fields = ("", "parallel: {}", "parallel: {tensor: 2}", "parallel: {tensor: 2, pipeline: 3}")
    specs = [model(text(f"models: {{a: {{engine: fake, {field}}}}}"), "a").spec for field in fields]
    assert [spec.parallel for spec in specs] == [Parallel(), Parallel(), Parallel(2), Parallel(2, 3)]
    assert [spec.parallel.devices for spec in specs] == [1, 1, 2, 6]
    assert len({spec.digest for spec in specs}) == 3
    with pytest.raises(ConfigErrors, match=r"models\.a\.parallel\.tensor"):
        text("models: {a: {engine: fake, parallel: {tensor: 0}}}")


def test_replicas_are_both_bounds_at_once() -> None:
    config = text("defaults: {max_replicas: 3}\nmodels: {a: {engine: fake, replicas: 2}, b: {engine: fake}}")
    bounds = [(one.policy.min_replicas, one.policy.max_replicas) for one in config.models]
    assert bounds == [(2, 2), (0, 3)]
    for field in ("min_replicas: 1", "max_replicas: 2"):
        with pytest.raises(ConfigErrors, match=r"models\.a\.replicas: is min_replicas and max_replicas"):
            text(f"models: {{a: {{engine: fake, replicas: 2, {field}}}}}")


def test_where_models_go_is_said_by_the_nearest() -> None:
    config = text(
        "defaults: {placement: spread}\n"
        "engines: {packed: {type: fake, placement: pack}, plain: {type: fake}}\n"
        "models: {a: {engine: packed}, b: {engine: plain}, c: {engine: packed, placement: spread}}"
    )
    assert [one.policy.placement.value for one in config.models] == ["pack", "spread", "spread"]
    with pytest.raises(ConfigErrors, match="placement: must be 'pack' or 'spread'"):
        text("models: {a: {engine: fake, placement: random}}")


def test_what_a_version_demands_of_its_file_is_a_part_of_it() -> None:
    fields = ("", "sha256: ", "allow_pickle: true")
    specs = [
        model(text(f"models: {{a: {{engine: fake, source: /f, {field}}}}}"), "a").spec
        for field in (*fields, f"sha256: 'sha256:{'A' * 64}'")
    ]
    assert [(spec.sha256, spec.allow_pickle) for spec in specs] == [
        ("", False),
        ("", False),
        ("", True),
        ("a" * 64, False),
    ]
    assert [spec.digest == specs[0].digest for spec in specs] == [True, True, False, False]
    for field, said in (("sha256: abc", "is not a sha256"), (f"sha256: {'a' * 64}", "there is no `source`")):
        with pytest.raises(ConfigErrors, match=rf"models\.a\.sha256: .*{said}"):
            text(f"models: {{a: {{engine: fake, {field}}}}}")


def test_the_stores_bounds() -> None:
    store = text("store: {quota: 20GB, verify_every: 7d}").store
    assert (store.quota, store.verify_every) == (20 * 10**9, 7 * 86400.0)
    assert (store.connections, text("journal: {}").store.quota) == (4, 0)


# -- schema and examples ---------------------------------------------------------------------------------


def test_the_schema_names_every_section_and_forbids_others() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["additionalProperties"] is False
    assert {
        "server",
        "engines",
        "models",
        "defaults",
        "devices",
        "memory",
        "journal",
        "store",
        "registry",
        "preload",
        "translation",
        "keys",
        "include",
    } == set(schema["properties"])
    assert set(Policy.__dataclass_fields__) <= set(schema["$defs"]["ModelSection"]["properties"])
    assert {*Policy.__dataclass_fields__, "price", "replicas"} == set(
        schema["$defs"]["PolicySection"]["properties"]
    )


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_examples_load(name: str) -> None:
    assert load(EXAMPLES / name, environ=HOME).models


def test_the_demo_has_three_models_of_one_file() -> None:
    config = load(EXAMPLES / "demo.yaml", environ=HOME)
    assert [one.spec.model for one in config.models] == ["smol-long", "smol-fast", "smol-wide"]
    assert len({one.spec.source for one in config.models}) == 1
    assert len({one.spec.digest for one in config.models}) == 3


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("sqlite:////data/models.db", "sqlite:////data/models.db"),
        ("sqlite:///models.db", "sqlite:////etc/yard/models.db"),
        ("sqlite:///~/models.db", "sqlite:////home/ada/models.db"),
        ("postgresql://ada:${PASSWORD}@db.lan/yard", "postgresql://ada:s3cret@db.lan/yard"),
    ],
)
def test_the_database_of_the_registry(written: str, url: str) -> None:
    environ, path = {"PASSWORD": "s3cret"}, Path("/etc/yard/yard.yaml")
    config = text(f"registry: {{database_url: {json.dumps(written)}}}", environ, path)
    assert config.database_url == url
    assert "s3cret" not in repr(config)


@pytest.mark.parametrize("url", ["sqlite:///", "postgresql://", "mysql://ada:s3cret@db.lan/yard", "s3cret"])
def test_what_is_no_database_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        text(f"registry: {{database_url: '{url}'}}")
    assert "registry.database_url: is neither" in str(caught.value)
    assert "s3cret" not in str(caught.value)
