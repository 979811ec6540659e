"""Command lines of llama-server: what becomes of each argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelyard.engines import llamacpp_options
from modelyard.importing import llama_server
from modelyard.importing.llama_server import ServerModel

BASE = Path("/srv/swap")


def read(command: str, *words: str, environ: dict[str, str] | None = None) -> ServerModel:
    return llama_server.read([*command.split(), *words], BASE, environ or {})


def parameters(command: str, *words: str) -> dict[str, Any]:
    """The parameters, which the engine's own check has accepted; the context is left out."""
    found: dict[str, Any] = read(f"-m /m.gguf -c 4096 {command}", *words).section["parameters"]
    assert not llamacpp_options.problems(found)
    assert found.pop("context") == 4096
    return found


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("-ctk q8_0 --cache-type-v q4_0", {"kv": {"k": "q8_0", "v": "q4_0"}}),
        ("-fa", {"flash_attention": "on"}),
        ("-fa on --flash-attn off", {"flash_attention": "off"}),
        ("--flash-attn auto -t 8 -tb 16", {"flash_attention": "auto", "threads": 8, "threads_batch": 16}),
        ("-ngl 24", {"gpu_layers": 24}),
        ("--n_gpu_layers 0", {"gpu_layers": 0}),
        ("-ngl 99", {}),
        ("-ngl all", {}),
        ("--gpu-layers -1", {}),
        ("-ts 3,1 -sm row -mg 1", {"tensor_split": [3, 1], "split_mode": "row", "main_gpu": 1}),
        ("--tensor-split 0.5/1.5", {"tensor_split": [0.5, 1.5]}),
        ("-b 4096 -ub 1024 --no-mmap", {"batch": 4096, "ubatch": 1024, "mmap": False}),
        ("-lm none", {"mmap": False}),
        ("-cram 1024 --swa-checkpoints 8", {"cache_ram_mib": 1024, "context_checkpoints": 8}),
        ("--embeddings --pooling mean", {"embedding": True, "pooling": "mean"}),
        ("--embedding --reranking --pooling rank", {"rerank": True, "pooling": "rank"}),
        (
            "--reasoning-format deepseek --reasoning-budget -1",
            {"reasoning": {"format": "deepseek", "budget": -1}},
        ),
        (
            "-md draft.gguf -ngld 99 --draft-max 16 --draft-min 4 --draft-p-min 0.4",
            {
                "draft": {
                    "source": "/srv/swap/draft.gguf",
                    "gpu_layers": 99,
                    "max": 16,
                    "min": 4,
                    "p_min": 0.4,
                }
            },
        ),
        ("--spec-type ngram-simple", {"ngram": "simple"}),
        ("--mmproj /p.gguf", {"mmproj": "/p.gguf"}),
        ("--chat-template chatml", {"chat_template": {"name": "chatml"}}),
        ("--chat-template-file t/x.jinja", {"chat_template": {"file": "/srv/swap/t/x.jinja"}}),
        ("--lora /a.gguf,/b.gguf", {"lora": [{"source": "/a.gguf"}, {"source": "/b.gguf"}]}),
        ("--lora-scaled /a.gguf:0.5", {"lora": [{"source": "/a.gguf", "scale": 0.5}]}),
        ("--lora-scaled /a.gguf 0.5", {"lora": [{"source": "/a.gguf", "scale": 0.5}]}),
    ],
)
def test_flags_become_parameters(command: str, expected: dict[str, Any]) -> None:
    assert parameters(command) == expected


def test_a_template_in_the_command_is_inline() -> None:
    found = parameters("--chat-template", "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert found["chat_template"]["inline"].startswith("{% for")


@pytest.mark.parametrize(
    ("command", "slots", "context"),
    [
        ("-c 8192", 1, 8192),
        ("-c 8192 -np 4", 4, 2048),
        ("--ctx-size 0 --parallel 2", 2, 0),
        ("-np 4 --kv-unified-per-slot 4096", 4, 4096),
        ("-np -1 -c 1024 -c 2048", 1, 2048),
        ("-np 2", 2, None),
    ],
)
def test_slots_share_one_context(command: str, slots: int, context: int | None) -> None:
    section = read(f"-m /m.gguf {command}").section
    assert (section["slots"], section.get("parameters", {}).get("context")) == (slots, context)


def test_everything_else_is_kept_as_it_is() -> None:
    command = "-m /m.gguf --temp 0.6 --samplers top_k;top_p -n -1 --no-context-shift --seed -1"
    model = read(command, "--chat-template-kwargs", '{"a": "b c"}', "--grammar-file", "./g.gbnf")
    assert model.extra == [
        *("--temp", "0.6", "--samplers", "top_k;top_p", "-n", "-1", "--no-context-shift", "--seed", "-1"),
        *("--chat-template-kwargs", '{"a": "b c"}', "--grammar-file", "/srv/swap/g.gbnf"),
    ]


def test_values_that_only_llama_server_judges_stay_arguments() -> None:
    model = read("-m /m.gguf -c 512 -sm tensor -ctk q6_0 --draft-max 8 -t auto -lm mlock")
    assert model.extra == [
        *("-sm", "tensor", "-ctk", "q6_0", "--draft-max", "8", "-t", "auto", "-lm", "mlock"),
    ]
    assert model.section["parameters"] == {"context": 512}


def test_what_modelyard_says_itself_is_not_repeated() -> None:
    model = read(
        "-m /m.gguf -c 512 --host 0.0.0.0 --port ${PORT} --metrics --slots --jinja -a x --no-webui -fit on"
    )
    assert (model.extra, model.port) == ([], "${PORT}")
    assert [message.partition(":")[0] for message, lost in model.remarks if not lost] == [
        "-a",
        "--no-webui",
        "-fit",
    ]


def test_what_would_break_the_way_to_the_engine_is_lost_without_its_value() -> None:
    model = read(
        "-m /m.gguf -c 512 --api-key hunter2 -dev CUDA0 --ssl-key-file /k --public http://x:${PORT} -hft tok"
    )
    lost = [message for message, is_lost in model.remarks if is_lost]
    flags = ["--api-key", "-dev", "--ssl-key-file", "--public", "-hft"]
    assert [message.partition(":")[0] for message in lost] == flags
    assert not any(value in " ".join(lost) for value in ("hunter2", "tok"))
    assert model.extra == []


@pytest.mark.parametrize(
    ("command", "words", "extra"),
    [
        ("stray", "stray", []),
        ("--api-key hunter2 stray", "stray", []),
        ("--api-key -hunter2 stray", "stray", []),
        ("-t 8 2>&1 | tee log", "2>&1 | tee log", []),
        ("--temp 0.6 0.7", "0.7", ["--temp", "0.6"]),
        ("--temp 0.6 -1", "-1", ["--temp", "0.6"]),
        ("--mlock # keeps it", "# keeps it", ["--mlock"]),
        ("--control-vector-layer-range 1 9 10", "10", ["--control-vector-layer-range", "1", "9"]),
    ],
)
def test_words_that_belong_to_no_flag_are_lost(command: str, words: str, extra: list[str]) -> None:
    model = read(f"-m /m.gguf -c 512 {command}")
    assert model.extra == extra
    told = [message for message, lost in model.remarks if lost]
    assert f"{words}: belongs to no flag" in told
    assert "hunter2" not in " ".join(told)


def test_an_empty_word_is_named() -> None:
    assert read("-m /m.gguf -c 512", "", "x").remarks == [("'' x: belongs to no flag", True)]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("-c 512", "no model file"),
        ("-m", "-m has no value"),
        ("-m /m.gguf -c many", "-c is no whole number"),
        ("-hf org/repo:Q4_K_M", "which file of org/repo"),
    ],
)
def test_no_model_can_be_made_of_it(command: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        read(command, environ={"HOME": str(tmp_path), "HF_HOME": str(tmp_path)})


def test_a_file_of_the_hub() -> None:
    assert read("-hf org/repo --hf-file x-Q8_0.gguf").section["source"] == "hf://org/repo/x-Q8_0.gguf"


def test_a_quantization_is_looked_up_in_the_caches(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    snapshot = tmp_path / "hf" / "hub" / "models--org--repo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-Q8_0.gguf", "m-BF16-00001-of-00002.gguf"):
        (snapshot / name).touch()
    assert read("-hf org/repo:q8_0", environ=environ).section["source"] == "hf://org/repo/m-Q8_0.gguf"
    assert read("-hf org/repo", environ=environ).section["source"] == "hf://org/repo/m-Q4_K_M.gguf"
    own = tmp_path / ".cache" / "llama.cpp" / "me_mine_m-Q4_K_M.gguf"
    own.parent.mkdir(parents=True)
    own.touch()
    assert read("-hf me/mine:Q4_K_M", environ=environ).section["source"] == str(own)
    with pytest.raises(ValueError, match="which file"):
        read("-hf org/repo:BF16", environ=environ)


def test_variables_of_arguments_are_arguments() -> None:
    environment = {"LLAMA_ARG_CTX_SIZE": "2048", "OMP_NUM_THREADS": "2", "LLAMA_ARG_FLASH_ATTN": "on"}
    left, flags = llama_server.without_arguments(environment)
    assert (left, flags) == ({"OMP_NUM_THREADS": "2"}, ["-c", "2048", "-fa", "on"])


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("llama-server", True),
        ("/opt/llama.cpp/build/bin/llama-server-b6000", True),
        ("vllm", False),
        ("/usr/bin/python3", False),
        ("sd-server", False),
    ],
)
def test_programs(program: str, expected: bool) -> None:
    assert llama_server.is_llama_server(program) is expected
