"""A bad configuration stops the start, names every wrong value and its line, and repeats no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.config import ConfigErrors, load
from modelyard.errors import ConfigError

SECRET = "hunter2 with spaces"


def problems(content: str, path: Path | None = None, **environ: str) -> ConfigErrors:
    with pytest.raises(ConfigErrors) as caught:
        load(path, content, environ)
    return caught.value


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        # shape
        ("modles: {}", "modles", "is not a field here; did you mean 'models'?"),
        (
            "models: {a: {engine: fake, price: {inputs: 1}}}",
            "models.a.price.inputs",
            "is not a field here; did you mean 'input'?",
        ),
        ('engines: {a: {type: fake, program: "/bin/a\\0b"}}', "engines.a.program", "holds a NUL character"),
        ("server: {prot: 1}", "server.prot", "did you mean 'port'?"),
        ("models: {a: {engine: fake, alias: [b]}}", "models.a.alias", "did you mean 'aliases'?"),
        (
            "models: {a: {engine: fake, n_ctx: 9}}",
            "models.a.n_ctx",
            "settings of the engine go under `parameters:`",
        ),
        ("engines: {e: {type: fake, engine_path: /x}}", "engines.e.engine_path", "did you mean 'program'?"),
        ("models: {a: {}}", "models.a.engine", "is required"),
        ("models: {a: 3}", "models.a", "must be a mapping"),
        ("models: [a]", "models", "must be a mapping"),
        ("keys: {a: b}", "keys", "must be a list"),
        ("models: {' a': {engine: fake}}", "models. a", "is not a name"),
        ("models: {a@1: {engine: fake}}", "models.a@1", "a version's digest"),
        ("models: {a: {engine: fake, aliases: [x@1]}}", "models.a.aliases[0]", "a version's digest"),
        ("models: {a: {engine: fake, aliases: [x y]}}", "models.a.aliases[0]", "is not a name; use letters"),
        ("models: {a: {engine: fake, slots: 0}}", "models.a.slots", "must be between 1 and"),
        ("models: {a: {engine: fake, slots: true}}", "models.a.slots", "is not a whole number"),
        ("models: {a: {engine: fake, slots: 1.5}}", "models.a.slots", "is not a whole number"),
        ("models: {a: {engine: fake, pin: 1}}", "models.a.pin", "is not true or false"),
        (
            "models: {a: {engine: fake, priority: urgent}}",
            "models.a.priority",
            "must be 'low', 'normal' or 'high'",
        ),
        ("models: {a: {engine: fake, max_wait: forever}}", "models.a.max_wait", "must have a bound"),
        (
            "models: {a: {engine: fake, request_timeout: 0}}",
            "models.a.request_timeout",
            "more than 0 seconds",
        ),
        ("models: {a: {engine: fake, keep_alive: -1}}", "models.a.keep_alive", "is not a duration"),
        ("models: {a: {engine: fake, capabilities: [Chat!]}}", "models.a.capabilities[0]", "does not match"),
        ("devices: {g: {memory: -1GB}}", "devices.g.memory", "is not a size"),
        ("devices: {g: {memory: 0}}", "devices.g.memory", "more than 0 bytes"),
        ("server: {port: 70000}", "server.port", "must be between 0 and 65535"),
        ("server: {limits: {body: lots}}", "server.limits.body", "is not a size"),
        ("engines: {e: {type: fake, environment: {A-B: x}}}", "engines.e.environment.A-B", "is not a name"),
        ("engines: {e: {type: fake, environment: {A: [1]}}}", "engines.e.environment.A", "must be text"),
        # what must fit together
        ("models: {a: {engine: lamacpp}}", "models.a.engine", "did you mean 'llamacpp'?"),
        ("engines: {e: {type: fak}}", "engines.e.type", "no engine 'fak' is installed; did you mean 'fake'?"),
        (
            "models: {a: {engine: fake, min_replicas: 2}}",
            "models.a.min_replicas",
            "is 2, above max_replicas (1)",
        ),
        (
            "models: {a: {engine: fake}, b: {engine: fake, aliases: [a]}}",
            "models.b.aliases[0]",
            "'a' is already a name of the model 'a'",
        ),
        (
            "models: {a: {engine: fake, aliases: [x]}, b: {engine: fake, aliases: [x]}}",
            "models.b.aliases[0]",
            "'x' is already a name of the model 'a'",
        ),
        ("models: {qwen: {engine: fake}}\npreload: [qwn]", "preload[0]", "did you mean 'qwen'?"),
        ("devices: {g: {kind: declared}}", "devices.g.memory", "is required for a declared device"),
        ("devices: {ram: {kind: declared, memory: 1GB}}", "devices.ram.kind", "always discovered"),
        ("devices: {g: {memory: 1GB, reserve: 1GB}}", "devices.g.reserve", "leaves nothing"),
        ("server: {unix: /s, port: 1}", "server.unix", "instead of `host` and `port`"),
        (f"server: {{unix: /{'s' * 110}}}", "server.unix", "longer than the 107 bytes"),
        # keys
        ("keys: [{name: k, key: x}]", "keys[0].scopes", "is required"),
        ("keys: [{name: k, key: x, scopes: []}]", "keys[0].scopes", "must name at least one"),
        ("keys: [{name: k, key: x, scopes: [root]}]", "keys[0].scopes[0]", "must be 'inference' or 'admin'"),
        ("keys: [{name: k, scopes: admin}]", "keys[0]", "needs either `key` or `hash`"),
        ("keys: [{name: k, hash: abc, scopes: admin}]", "keys[0].hash", "must be a sha256"),
        ("keys: [{name: k, key: '', scopes: admin}]", "keys[0].key", "visible ASCII"),
        (
            "keys: [{name: k, key: x, scopes: admin}, {name: k, key: y, scopes: admin}]",
            "keys[1].name",
            "is taken",
        ),
        (
            "keys: [{name: k, key: x, scopes: admin}, {name: l, key: x, scopes: admin}]",
            "keys[1]",
            "the same secret as the key 'k'",
        ),
        # text
        ("models: {a: {engine: fake, source: '${NOPE}'}}", "models.a.source", "environment variable NOPE"),
        ("models: {a: {engine: fake, source: '${bad name}'}}", "models.a.source", "that is not ${NAME}"),
        ("models: {7: {engine: fake}}", "models", "put quotes around it"),
        ("models: {no: {engine: fake}}", "models", "put quotes around it"),
        ("models: {a: {engine: fake, source: !!python/name:os.system ''}}", "models.a.source", "YAML tag"),
        ("models: {a: {engine: fake, engine: fake}}", "models.a.engine", "is written twice"),
        ("models: {a: {<<: 3, engine: fake}}", "models.a", "`<<` takes a mapping"),
        ("include: 3", "include", "is not a list of file names"),
        ("include: [nowhere.yaml]", "include[0]", "is not a file"),
        ("", "", "is empty"),
        ("# only a comment", "", "is empty"),
        ("- a", "", "is not a mapping of sections"),
        ("a: [", "", "is not valid YAML"),
        (
            "keys: [{name: k, key: ${MINE}}]",
            "",
            "got '{'; inside {…} and […] a reference needs quotes, as in \"${",
        ),
        ("preload: [a, b-${MINE:-c}]", "", "a reference needs quotes"),
        ("a: *x", "", "is not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "", "is not valid YAML"),
        ("a: \x01", "", "a character that YAML does not allow"),
        ("server: " + "[" * 5000, "", "nested too deeply"),
        ("server: " + "{a: " * 40 + "1" + "}" * 40, "server" + ".a" * 32, "is larger than 32 levels"),
        ("server: &a [*a]", "server" + "[0]" * 32, "is larger than 32 levels"),
    ],
)
def test_each_is_named_with_its_path(content: str, path: str, message: str) -> None:
    error = problems(content)
    assert isinstance(error, ConfigError)
    assert [problem.path for problem in error.problems] == [path]
    assert message in error.problems[0].message
    assert error.path == path
    assert path in str(error)


def test_an_alias_bomb_is_bounded() -> None:
    levels = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 10))
    assert "50000 values" in str(problems(f"x0: &x0 [1]\n{levels}"))


def test_all_are_listed_at_once_with_their_lines(tmp_path: Path) -> None:
    content = """
server: {port: lots}
models:
  a: {engine: fake, slots: -1, prioritty: low}
  b: {engine: nope, min_replicas: 3}
  c: {slots: 2}
devices:
  g: {memory: much}
preload: [c, d]
"""
    error = problems(content, tmp_path / "c.yaml")
    assert {(problem.path, problem.where.removeprefix(f"{tmp_path}/")) for problem in error.problems} == {
        ("server.port", "c.yaml:2"),
        ("models.a.slots", "c.yaml:4"),
        ("models.a.prioritty", "c.yaml:4"),
        ("models.b.engine", "c.yaml:5"),
        ("models.b.min_replicas", "c.yaml:5"),
        ("models.c.engine", "c.yaml:6"),
        ("devices.g.memory", "c.yaml:8"),
        ("preload[1]", "c.yaml:9"),
    }
    assert len(str(error).splitlines()) == 8


def test_a_flood_of_problems_is_cut() -> None:
    models = "\n".join(f"  m{n}: 3" for n in range(80))
    lines = str(problems(f"models:\n{models}")).splitlines()
    assert (len(lines), lines[-1]) == (51, "… and 30 more")


@pytest.mark.parametrize(
    "content",
    [
        "keys: [{name: k, key: '${S}', scopes: admin}]",
        "keys: [{name: k, hash: '${S}', scopes: admin}]",
        "keys: [{name: '${S}', key: x, scopes: admin}]",
        "keys: [{name: k, key: ['${S}'], scopes: admin}]",
        "keys: ['${S}']",
        "keys: [{name: k, key: x, scopes: '${S}'}]",
        "server: {port: '${S}', limits: {body: '${S}', header_timeout: '${S}'}}",
        "models: {a: {engine: fake, pin: '${S}', priority: '${S}', capabilities: ['${S}']}}",
    ],
)
def test_no_message_repeats_a_value(content: str) -> None:
    error = problems(content, S=SECRET)
    assert "hunter2" not in str(error)
    assert "hunter2" not in repr(error)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__ or "hunter2" not in str(error.__context__)


# -- files -----------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"cannot read .*: No such file"):
        load(tmp_path / "none.yaml", environ={})
    with pytest.raises(ConfigErrors, match=r"cannot read .*: Is a directory"):
        load(tmp_path, environ={})
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigErrors, match=r"is not UTF-8 text \(.*latin\.yaml:2\)"):
        load(tmp_path / "latin.yaml", environ={})
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigErrors, match="larger than 1 MiB"):
        load(tmp_path / "large.yaml", environ={})


def test_a_model_in_two_files_names_both(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("\nmodels:\n  a: {engine: fake}\n")
    error = problems("include: b.yaml\nmodels: {a: {engine: fake}}", tmp_path / "c.yaml")
    assert str(error) == (
        f"models.a: is defined twice; the other one is at {tmp_path}/c.yaml:2 ({tmp_path}/b.yaml:3)"
    )


def test_a_file_that_includes_itself(tmp_path: Path) -> None:
    main, other = tmp_path / "c.yaml", tmp_path / "b.yaml"
    error = problems("models: {a: {engine: fake}}\ninclude: [c.yaml]", main)
    assert str(error) == f"include[0]: makes {main} include itself: {main} includes {main} ({main}:2)"
    other.write_text("\ninclude: c.yaml\n")
    error = problems("include: [b.yaml]", main)
    way = f"{main} includes {other} includes {main}"
    assert str(error) == f"include[0]: makes {main} include itself: {way} ({other}:2)"


def test_a_section_of_one_file_only(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("server: {port: 1}\n")
    error = problems("include: b.yaml\nserver: {port: 2}", tmp_path / "c.yaml")
    assert (
        str(error) == f"server: is set twice; the other one is at {tmp_path}/c.yaml:2 ({tmp_path}/b.yaml:1)"
    )
