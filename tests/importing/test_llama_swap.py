"""llama-swap's configurations: every field is taken over, or told."""

from __future__ import annotations

from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import pytest

from modelyard.config import Config, Model, load
from modelyard.core.types import Priority
from modelyard.errors import ConfigError
from modelyard.importing import llama_swap, written
from modelyard.importing.imported import Imported


def imported(folder: Path, text: str, environ: dict[str, str], *, elsewhere: bool = False) -> Imported:
    path = folder / "config.yaml"
    path.write_text(text)
    return llama_swap.read(path, environ, elsewhere=elsewhere)


def configured(result: Imported, folder: Path, environ: dict[str, str]) -> Config:
    """What the loader makes of the written text."""
    target = folder / "modelyard.yaml"
    text = written.text_of(result, target, environ, elsewhere=False)
    return load(target, text, environ)


def model_of(config: Config, name: str) -> Model:
    (found,) = [model for model in config.models if model.spec.model == name]
    return found


def lost(result: Imported) -> dict[str, str]:
    return {remark.path: remark.message for remark in result.lost}


WHOLE = """
# a home server
healthCheckTimeout: 300
globalTTL: 900
logLevel: debug
startPort: 10001

macros:
  models: ${env.HOME}
  ctx: 8192
  flash: on
  "common args": unused
  base: >
    llama-server --host 127.0.0.1 --port ${PORT}
    --flash-attn ${flash}
  long: ${base} -c ${ctx}

models:
  "qwen2.5-coder:7b":
    macros: {ctx: 16384}
    cmd: |
      # ${base} in a comment is nothing
      ${long} --model '${models}/model.gguf' \\
        -np 4 -ngl 99 -ctk q8_0 -ctv q8_0
      --temp 0.6 --alias ${MODEL_ID}
    aliases: [coder, gpt-4o-mini]
    ttl: 0
    env:
      - OMP_NUM_THREADS=4
      - CUDA_VISIBLE_DEVICES=0
    filters: {stripParams: "temperature, top_p"}
    capabilities: {in: [text, image], out: [text], tools: true}

  embed:
    proxy: http://127.0.0.1:9001
    cmd: ${env.HOME}/bin/llama-server -m ${models}/model.gguf --embeddings --port 9001 -c 512
    unlisted: true
    concurrencyLimit: 4
    timeouts: {responseHeader: 60, connect: 5}

  vision-docker:
    cmd: docker run --rm -p ${PORT}:8080 ghcr.io/ggml-org/llama.cpp:server -m /models/x.gguf
    cmdStop: docker stop ${MODEL_ID}

groups:
  forever: {persistent: true, swap: false, exclusive: false, members: [embed, vision-docker]}
  big: {members: ["qwen2.5-coder:7b"]}

hooks:
  on_startup: {preload: [coder, vision-docker]}

apiKeys: [sk-hunter2, "${env.APP_KEY}"]
"""


@pytest.fixture
def whole(tmp_path: Path, model: Path, environ: dict[str, str]) -> tuple[Imported, Config]:
    environ |= {"APP_KEY": "a" * 20}
    text = WHOLE.replace('  "common args": unused\n', "")
    result = imported(tmp_path, text, environ)
    return result, configured(result, tmp_path, environ)


def test_a_whole_configuration(whole: tuple[Imported, Config], tmp_path: Path) -> None:
    _, config = whole
    coder, embed = model_of(config, "qwen2.5-coder:7b"), model_of(config, "embed")
    assert coder.spec.source == embed.spec.source == str(tmp_path / "model.gguf")
    assert coder.aliases == ("coder", "gpt-4o-mini")
    assert coder.spec.slots == 4
    assert coder.spec.parameters == {
        "context": 4096,
        "flash_attention": "on",
        "kv": {"k": "q8_0", "v": "q8_0"},
        "extra_args": ["--temp", "0.6"],
    }
    assert coder.spec.capabilities == {"vision", "tools"}
    assert coder.policy.keep_alive == inf
    assert (embed.policy.keep_alive, embed.policy.load_cap, embed.policy.first_byte_timeout) == (900, 300, 60)
    assert (embed.policy.pin, coder.policy.pin) == (True, False)
    assert config.preload == ("qwen2.5-coder:7b",)
    first, second = config.profiles[coder.spec.engine], config.profiles[embed.spec.engine]
    assert (first.program, first.environment) == ("llama-server", {"OMP_NUM_THREADS": "4"})
    assert second.program == str(tmp_path / "bin" / "llama-server")
    assert [key.digest for key in config.keys] == [
        sha256(secret).hexdigest() for secret in (b"sk-hunter2", b"a" * 20)
    ]


def test_what_has_no_counterpart_is_named(whole: tuple[Imported, Config]) -> None:
    result, _ = whole
    assert list(lost(result)) == [
        "models.qwen2.5-coder:7b.env",
        "models.qwen2.5-coder:7b.filters.stripParams",
        "models.embed.timeouts.connect",
        "models.embed.unlisted",
        "models.embed.concurrencyLimit",
        "models.vision-docker.cmd",
        "groups.forever.members[1]",
        "hooks.on_startup.preload[1]",
        "logLevel",
        "startPort",
    ]
    assert "a container (docker)" in lost(result)["models.vision-docker.cmd"]


def test_secrets_are_not_written(whole: tuple[Imported, Config], tmp_path: Path) -> None:
    text = written.text_of(
        whole[0], tmp_path / "x.yaml", {"APP_KEY": "a" * 20, "HOME": str(tmp_path)}, elsewhere=False
    )
    assert "hunter2" not in text
    assert 'key: "${APP_KEY}"' in text


def test_keys_that_cannot_be_are_told(tmp_path: Path, model: Path, environ: dict[str, str]) -> None:
    text = (
        one(f"llama-server -m {model} -c 512")
        + 'apiKeys: [sk-1, "${env.ONE}", "a b", sk-2, "${env.UNSET}"]\n'
    )
    result = imported(tmp_path, text, {**environ, "ONE": "sk-1"})
    written.text_of(result, tmp_path / "o.yaml", environ, elsewhere=False)
    assert [key["name"] for key in result.keys] == ["key-1", "key-4", "key-5"]
    assert list(lost(result)) == ["apiKeys[1]", "apiKeys[2]"]


def test_decades_are_for_ever(tmp_path: Path, model: Path, environ: dict[str, str]) -> None:
    text = "globalTTL: 999999999\nhealthCheckTimeout: 999999999\n" + one(
        f"llama-server -m {model} -c 512", ttl=600
    )
    config = configured(imported(tmp_path, text, environ), tmp_path, environ)
    assert (config.models[0].policy.keep_alive, config.models[0].policy.load_cap) == (600, 365 * 86400)
    text = one(f"llama-server -m {model} -c 512", ttl=999_999_999)
    config = configured(imported(tmp_path, text, environ), tmp_path, environ)
    assert config.models[0].policy.keep_alive == inf


def one(command: str, **fields: Any) -> str:
    lines = "".join(f"    {name}: {value}\n" for name, value in fields.items())
    return f"models:\n  m:\n    cmd: {command}\n{lines}"


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        (one("vllm serve x"), "models.m.cmd", "it runs vllm"),
        (one("/usr/bin/podman run x"), "models.m.cmd", "container"),
        (one("bash -c 'llama-server -m /x'"), "models.m.cmd", "it runs bash"),
        (one("llama-server -m /nowhere.gguf -c 1"), "models.m.source", "does not exist"),
        (one("llama-server -m /x ${nothing}"), "models.m.cmd", "macro nothing"),
        (one("llama-server -m '/x"), "models.m.cmd", "quotes"),
        (one("llama-server -m /x", proxy="http://10.0.0.9:8080"), "models.m.cmd", "another server"),
        (one("llama-server -m /x", env="[OOPS]"), "models.m.cmd", "NAME=value"),
        ("models: {m: {ttl: 5}}", "models.m.cmd", "no command"),
    ],
)
def test_a_model_that_cannot_be_one_is_named(
    tmp_path: Path, environ: dict[str, str], text: str, path: str, reason: str
) -> None:
    result = imported(tmp_path, text, environ)
    with pytest.raises(ConfigError, match="none of its 1 models"):
        written.text_of(result, tmp_path / "o.yaml", environ, elsewhere=False)
    assert result.models == {}
    assert reason in lost(result)[path]


BOMB = "a: &a [x]\n" + "".join(
    f"b{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else '*a'] * 9)}]\n" for n in range(7)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no `models:`"),
        ("models: {}", "no `models:`"),
        ("models: [", "is not valid YAML"),
        ("models:\n  a: {cmd: x}\n  a: {cmd: y}", r":3 is not valid YAML: the key 'a' is written twice"),
        ("models: {a: [x]}", "models.a: is not a mapping"),
        ("macros: {a: [x]}\nmodels: {a: {cmd: x}}", "macros.a"),
        (BOMB, "more than 50000 values"),
        ("macros:\n  a: " + "x" * 3000 + "\nmodels: {m: {cmd: '" + "${a}" * 100 + "'}}", "longer than"),
    ],
)  # fmt: skip
def test_what_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, text, {})


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        llama_swap.read(tmp_path / "none.yaml", {})
    (tmp_path / "bytes.yaml").write_bytes(b"models: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        llama_swap.read(tmp_path / "bytes.yaml", {})


def test_macros_name_earlier_ones_and_keep_their_types(
    tmp_path: Path, model: Path, environ: dict[str, str]
) -> None:
    text = f"""
macros: {{a: 1, b: "${{a}}2", seconds: 30}}
models:
  m: {{cmd: "llama-server -m {model} -c ${{b}}", ttl: "${{seconds}}"}}
"""
    result = imported(tmp_path, text, environ)
    assert result.models["m"]["parameters"] == {"context": 12}
    assert result.models["m"]["keep_alive"] == 30


def test_without_llama_server_its_own_arguments_are_lost(tmp_path: Path, model: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    result = imported(tmp_path, one(f"llama-server -m {model} -c 512 --temp 0.6"), environ)
    config = configured(result, tmp_path, environ)
    assert config.models[0].spec.engine == "llamacpp"
    assert config.models[0].spec.parameters == {"context": 512}
    assert lost(result) == {"models.m.cmd": "needs llama-server itself: --temp 0.6"}


@pytest.mark.parametrize("here", [True, False], ids=["llama-server", "the wheel"])
def test_words_that_belong_to_no_flag_are_named(
    tmp_path: Path, model: Path, environ: dict[str, str], here: bool
) -> None:
    command = f"llama-server -m {model} stray -c 512 --temp 0.6 word -np 2 # comment here"
    result = imported(tmp_path, one(f"'{command}'"), environ if here else {"PATH": str(tmp_path)})
    told = [remark.message for remark in result.lost]
    assert [message for message in told if message.endswith(": belongs to no flag")] == [
        f"{words}: belongs to no flag" for words in ("stray", "word", "# comment here")
    ]
    assert ("needs llama-server itself: --temp 0.6" in told) is not here
    assert result.models["m"]["parameters"].get("extra_args") == (["--temp", "0.6"] if here else None)


def test_for_another_machine_nothing_is_looked_for(tmp_path: Path) -> None:
    result = imported(tmp_path, one("/opt/llama-server -m /m/x.gguf -c 512 --temp 1"), {}, elsewhere=True)
    text = written.text_of(result, tmp_path / "o.yaml", {}, elsewhere=True)
    config = load(tmp_path / "o.yaml", text, {})
    assert config.models[0].spec.parameters["extra_args"] == ["--temp", "1"]
    assert config.profiles["llama-server"].program == "/opt/llama-server"
    assert lost(result) == {}


def test_a_name_that_cannot_be_one_is_changed(tmp_path: Path, model: Path, environ: dict[str, str]) -> None:
    text = f"""
models:
  "my model (fast)": {{cmd: llama-server -m {model} -c 512, aliases: [fast, "not this", other]}}
  other: {{cmd: llama-server -m {model} -c 512}}
"""
    result = imported(tmp_path, text, environ)
    assert configured(result, tmp_path, environ).models[0].aliases == ("fast",)
    assert list(result.models) == ["my-model-fast-", "other"]
    paths = [remark.path for remark in result.remarks]
    assert paths == [
        "models.my model (fast)",
        "models.my model (fast).aliases[1]",
        "models.my model (fast).aliases[2]",
    ]


def test_routing_and_priorities(tmp_path: Path, model: Path, environ: dict[str, str]) -> None:
    command = f"{{cmd: llama-server -m {model} -c 512}}"
    text = f"""
models: {{a: {command}, b: {command}, c: {command}}}
routing:
  router:
    use: group
    settings:
      groups:
        keep: {{persistent: true, swap: false, members: [a]}}
        turns: {{persistent: true, members: [b]}}
      matrix: {{sets: {{x: a & b}}}}
  scheduler: {{use: fifo, settings: {{fifo: {{priority: {{a: 10, b: 5, c: -1, gone: 1}}}}}}}}
  novelty: 1
"""
    result = imported(tmp_path, text, environ)
    config = configured(result, tmp_path, environ)
    assert [model.policy.priority for model in config.models] == [Priority.HIGH, Priority.HIGH, Priority.LOW]
    assert [model.policy.pin for model in config.models] == [True, False, False]
    assert list(lost(result)) == [
        "routing.router.settings.groups.turns.persistent",
        "routing.router.settings.matrix",
        "routing.scheduler.settings.fifo.priority.gone",
        "routing.novelty",
    ]


def test_settings_of_the_wrong_kind_are_told(tmp_path: Path, model: Path, environ: dict[str, str]) -> None:
    text = f"""
globalTTL: soon
models: {{m: {{cmd: llama-server -m {model} -c 512, ttl: [1], filters: 3, checkEndpoint: /ready, env: []}}}}
hooks: {{on_startup: [m], on_shutdown: {{x: 1}}}}
peers: {{other: {{proxy: "http://10.0.0.1"}}}}
mystery: 1
"""
    result = imported(tmp_path, text, environ)
    configured(result, tmp_path, environ)
    assert list(lost(result)) == [
        *("globalTTL", "models.m.ttl", "models.m.checkEndpoint", "models.m.filters"),
        *("hooks.on_startup", "hooks.on_shutdown", "peers", "mystery"),
    ]
