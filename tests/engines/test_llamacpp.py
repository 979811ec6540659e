"""The llama.cpp adapter: both commands, the estimate against reality, causes from real logs."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from engines.llama_header import HEADER, KV_PER_TOKEN_AND_LAYER
from modelyard.core.types import Address, Cause, Parallel, Spec, WarmUp
from modelyard.engines.base import Exit, Files, ModelFile, Profile
from modelyard.engines.gguf import facts, read_header
from modelyard.engines.llamacpp import LlamaCppEngine
from modelyard.engines.llamacpp_memory import CUDA_CONTEXT, MIB
from servers.live import running

ENGINE = LlamaCppEngine()
WHEEL = Profile("llamacpp", "llamacpp")
NATIVE = Profile("llamacpp", "llamacpp", found={"llama-server": "/usr/bin/llama-server"})
SOCKET = Address(path="/run/i1.sock")
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"
)


def spec(
    parameters: Mapping[str, object] | None = None, slots: int = 1, devices: tuple[str, ...] = ("ram",)
) -> Spec:
    return Spec("qwen", "d" * 64, "llamacpp", "m.gguf", parameters or {}, slots=slots, devices=devices)


def files(header: Mapping[str, object] = HEADER, **more: int) -> Files:
    found = {"model": ModelFile(Path("/c/m.gguf"), 5000, "m1", header)}
    return found | {role: ModelFile(Path(f"/c/{role}.gguf"), size, role) for role, size in more.items()}


FULL: Mapping[str, object] = {
    "context": 2048,
    "kv": {"k": "q8_0", "v": "q4_0"},
    "threads": 4,
    "gpu_layers": 12,
    "tensor_split": [3, 1],
    "split_mode": "row",
    "main_gpu": 1,
    "flash_attention": True,
    "mmap": False,
    "batch": 1024,
    "ubatch": 256,
    "cache_ram_mib": 64,
    "lora": [{"source": "a.gguf", "scale": 0.5}],
    "chat_template": {"name": "chatml"},
    "reasoning": {"format": "deepseek-legacy", "budget": 0},
    "draft": {"source": "d.gguf", "max": 8, "min": 1, "p_min": 0.5, "gpu_layers": 0},
    "mmproj": "p.gguf",
}
FULL_FILES = files(lora0=10, draft=20, mmproj=30)


def test_the_flags_of_llama_server() -> None:
    command = ENGINE.command(spec(FULL, slots=3), NATIVE, (), SOCKET, FULL_FILES)
    assert " ".join(command.argv) == (
        "/usr/bin/llama-server --model /c/m.gguf --alias qwen --host /run/i1.sock"
        " --ctx-size 6144 --parallel 3 --gpu-layers 12 --metrics --slots --jinja"
        " --cache-type-k q8_0 --cache-type-v q4_0 --threads 4 --tensor-split 3,1 --split-mode row"
        " --main-gpu 1"
        " --flash-attn on --batch-size 1024 --ubatch-size 256 --chat-template chatml"
        " --reasoning-format deepseek-legacy --reasoning-budget 0"
        " --spec-draft-n-max 8 --spec-draft-n-min 1 --spec-draft-p-min 0.5 --spec-draft-ngl 0"
        " --lora-scaled /c/lora0.gguf:0.5 --spec-type draft-simple --spec-draft-model /c/draft.gguf"
        " --mmproj /c/mmproj.gguf"
    )
    assert command.environment == {
        "LLAMA_ARG_CACHE_RAM": "64",
        "LLAMA_ARG_CORS_ORIGINS": "localhost",
        "LLAMA_ARG_CTX_CHECKPOINTS": "0",
        "LLAMA_ARG_FIT": "off",
        "LLAMA_ARG_LOAD_MODE": "none",
        "LLAMA_ARG_NO_MMAP": "1",
        "LLAMA_ARG_UI": "0",
        "LLAMA_ARG_WEBUI": "0",
    }


def test_the_same_spec_for_the_wheel() -> None:
    command = ENGINE.command(spec(FULL, slots=3), WHEEL, (), SOCKET, FULL_FILES)
    assert command.argv[1:3] == ("-m", "modelyard.servers.llamacpp")
    assert json.loads(command.argv[3]) == {
        "model.path": "/c/m.gguf",
        "model_alias": ["qwen"],
        "hostnames": ["/run/i1.sock"],
        "port": 0,
        "n_ctx": 6144,
        "n_parallel": 3,
        "n_gpu_layers": 12,
        "load_mode": "LLAMA_LOAD_MODE_NONE",
        "cache_ram_mib": 64,
        "n_ctx_checkpoints": 0,
        "endpoint_metrics": True,
        "endpoint_slots": True,
        "fit_params": False,
        "ui": False,
        "cors_origins": "localhost",
        "cache_type_k": "GGML_TYPE_Q8_0",
        "cache_type_v": "GGML_TYPE_Q4_0",
        "cpuparams.n_threads": 4,
        "tensor_split": [3, 1],
        "split_mode": "LLAMA_SPLIT_MODE_ROW",
        "main_gpu": 1,
        "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
        "n_batch": 1024,
        "n_ubatch": 256,
        "chat_template": "chatml",
        "reasoning_format": "COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY",
        "sampling.reasoning_budget_tokens": 0,
        "speculative.draft.n_max": 8,
        "speculative.draft.n_min": 1,
        "speculative.draft.p_min": 0.5,
        "speculative.draft.n_gpu_layers": 0,
        "lora_adapters": [{"path": "/c/lora0.gguf", "scale": 0.5}],
        "speculative.draft.mparams.path": "/c/draft.gguf",
        "speculative.types": ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"],
        "mmproj.path": "/c/mmproj.gguf",
    }


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"embedding": True, "pooling": "mean"}, "--pooling mean --embeddings"),
        ({"rerank": True}, "--reranking"),
        ({"ngram": "map-k4v"}, "--spec-type ngram-map-k4v"),
        ({"chat_template": {"file": "/t.jinja"}}, "--chat-template-file /t.jinja"),
        ({"flash_attention": False}, "--flash-attn off"),
        ({"extra_args": ["--swa-full", "--seed", "1"]}, "--swa-full --seed 1"),
        ({"gpu_layers": "all"}, "--gpu-layers 999 --metrics --slots --jinja"),
    ],
)
def test_single_parameters(parameters: Mapping[str, object], expected: str) -> None:
    command = ENGINE.command(spec(parameters), NATIVE, (), SOCKET, files())
    assert " ".join(command.argv).endswith(expected)


def test_a_port_and_a_program_of_the_profile() -> None:
    profile = Profile("p", "llamacpp", program="/opt/llama-server")
    argv = ENGINE.command(spec(), profile, (), Address(host="127.0.0.1", port=4711), files()).argv
    assert argv[0] == "/opt/llama-server"
    assert "--host 127.0.0.1 --port 4711" in " ".join(argv)


def test_the_context_defaults_to_4096_or_what_the_model_can() -> None:
    def context(parameters: Mapping[str, object], header: Mapping[str, object]) -> str:
        argv = ENGINE.command(spec(parameters, slots=2), NATIVE, (), SOCKET, files(header)).argv
        return argv[argv.index("--ctx-size") + 1]

    assert context({}, HEADER) == "8192"
    assert context({}, {**HEADER, "llama.context_length": 1024}) == "2048"
    assert context({"context": 0}, HEADER) == "65536"


def test_sources_by_role() -> None:
    sources = {"model": "m.gguf", "draft": "d.gguf", "mmproj": "p.gguf", "lora0": "a.gguf"}
    assert ENGINE.sources(spec(FULL)) == sources
    assert ENGINE.sources(spec()) == {"model": "m.gguf"}


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"reasoning": {"budget": "much"}}, "parameters.reasoning.budget"),
        ({"gpu_layers": "some"}, "parameters.gpu_layers"),
        ({"chat_template": {"name": "--verbose"}}, "parameters.chat_template.name"),
        ({"chat_template": {"inline": "--verbose"}}, "parameters.chat_template.inline"),
        ({"chat_template": {"file": "chat.jinja"}}, "parameters.chat_template.file"),
        ({"tensor_split": []}, "parameters.tensor_split"),
        ({"mmap": "yes"}, "parameters.mmap"),
        ({"embedding": True, "rerank": True}, "parameters.rerank"),
        ({"ngram": "simple", "draft": {"source": "d"}}, "parameters.ngram"),
        ({"draft": {"p_min": 2, "source": "d"}}, "parameters.draft.p_min"),
        ({"context": -1}, "parameters.context"),
        ({"context": True}, "parameters.context"),
    ],
)
def test_problems_name_their_path(parameters: Mapping[str, object], path: str) -> None:
    assert [where for where, _ in ENGINE.problems(spec(parameters), WHEEL)] == [path]


# -- the estimate ---------------------------------------------------------------------------------------


def ram(parameters: Mapping[str, object], header: Mapping[str, object] = HEADER, slots: int = 1) -> int:
    (share,) = ENGINE.need(spec(parameters, slots=slots), files(header)).shares
    return share.bytes


def test_the_cache_grows_with_context_slots_and_type() -> None:
    base = ram({"context": 1024})
    step = 1024 * 4 * KV_PER_TOKEN_AND_LAYER
    assert ram({"context": 2048}) - base == step
    assert ram({"context": 1024}, slots=2) - base == step
    assert ram({"context": 1000}) == base  # padded to 256 cells
    assert ram({"context": 1024, "kv": {"k": "q8_0", "v": "q8_0"}}) - base == round(step * (34 / 64 - 1))
    assert ram({"context": 1024, "cache_ram_mib": 8}) - base == 8 * MIB
    assert base - ram({"context": 1024, "ubatch": 256}) == 4 * 256 * (3 * 1024 + 5 * 512)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"llama.attention.head_count_kv": [2, 0, 2, 0]}, 2),
        ({"llama.attention.key_length": 128, "llama.attention.value_length": 64}, 6),
        ({"llama.attention.key_length": 128, "llama.attention.key_length_mla": 192}, 4),
        ({"llama.attention.sliding_window": 512}, 4),
        ({"llama.attention.sliding_window": 512, "llama.attention.sliding_window_pattern": 2}, 2.5),
        (
            {
                "llama.attention.sliding_window": 512,
                "llama.attention.sliding_window_pattern": [True, True, True, False],
            },
            1.75,
        ),
    ],
)
def test_the_cache_of_other_architectures(changes: dict[str, object], layers: float) -> None:
    """In layers that attend to the whole context of 4,096."""
    header = {**HEADER, **changes}
    # A context of 4,096 against none: the window of 512 and a batch of 512 are 1,024 cells.
    cache = ram({"context": 4096}, header) - ram(
        {"context": 4096}, {**HEADER, "llama.attention.head_count_kv": [0]}
    )
    assert cache == layers * 4096 * KV_PER_TOKEN_AND_LAYER


def test_mmap_moves_the_weights_to_the_mapped_file() -> None:
    (plain,) = ENGINE.need(spec(), files()).shares
    (mapping,) = ENGINE.need(spec({"mmap": True}), files()).shares
    assert plain.mapped == {}
    assert mapping.mapped == {"m1": 4900}
    assert plain.bytes - mapping.bytes == 4900


def test_layers_go_to_the_accelerator() -> None:
    shares = ENGINE.need(spec({"gpu_layers": 3, "context": 1024, "mmap": True}), files()).shares
    host, device = shares
    assert (host.on, device.on) == ("ram", "accelerator")
    assert host.mapped == {"m1": 1900}
    computation = 4 * 512 * (3 * 1024 + 5 * 512 + 100)
    cache = 3 * 1024 * KV_PER_TOKEN_AND_LAYER
    assert device.bytes == 3000 + cache + computation + CUDA_CONTEXT


def test_named_devices_take_everything_in_parts() -> None:
    shares = ENGINE.need(spec({"tensor_split": [3, 1]}, devices=("GPU-1", "GPU-2")), files()).shares
    assert [share.on for share in shares] == ["ram", "accelerator", "accelerator"]
    # The output layer goes too; it is tied, so a copy of the token table goes with it.
    both = 4000 + 300 + 600 + 4 * 4096 * KV_PER_TOKEN_AND_LAYER
    assert shares[1].bytes - shares[2].bytes == pytest.approx(both / 2, abs=2)
    assert shares[0].mapped == {"m1": 600}


PAIR = ("GPU-1", "GPU-2")


def places(parameters: Mapping[str, object], devices: tuple[str, ...] = ()) -> list[str]:
    """Where the shares of a model lie, host RAM left out."""
    shares = ENGINE.need(spec(parameters, devices=devices), files()).shares
    return [share.on for share in shares if share.on != "ram"]


@pytest.mark.parametrize(
    ("parameters", "devices", "expected"),
    [
        ({}, (), ["accelerator"]),
        ({}, PAIR, ["accelerator"] * 2),
        ({}, ("GPU-2",), ["accelerator"]),
        ({"gpu_layers": 0}, (), []),
        ({"tensor_split": [3, 1]}, (), ["accelerator"] * 2),
        ({"split_mode": "none"}, (), ["accelerator"]),
        ({"split_mode": "none"}, PAIR, ["accelerator"]),
        ({"split_mode": "none", "main_gpu": 1}, PAIR, ["GPU-2"]),
        ({"split_mode": "none", "main_gpu": 0}, ("ram", *PAIR), ["GPU-1"]),
        ({"split_mode": "row", "main_gpu": 1}, PAIR, ["accelerator"] * 2),
    ],
)
def test_a_model_lies_on_one_device_unless_it_is_split(
    parameters: Mapping[str, object], devices: tuple[str, ...], expected: list[str]
) -> None:
    assert ENGINE.problems(spec(parameters, devices=devices), WHEEL) == []
    assert places(parameters, devices) == expected


def test_the_device_of_split_mode_none_is_the_only_one_that_the_program_sees() -> None:
    model = spec({"split_mode": "none", "main_gpu": 1}, devices=PAIR)
    flags = ENGINE.command(model, NATIVE, (), SOCKET, files()).argv
    assert flags[flags.index("--main-gpu") + 1] == "0"
    wheel = json.loads(ENGINE.command(model, WHEEL, (), SOCKET, files()).argv[-1])
    assert wheel["main_gpu"] == 0


@pytest.mark.parametrize(
    ("parameters", "devices", "path"),
    [
        ({"tensor_split": [0, 0]}, (), "parameters.tensor_split"),
        ({"tensor_split": [1, float("inf")]}, (), "parameters.tensor_split"),
        ({"tensor_split": [1, float("nan")]}, (), "parameters.tensor_split"),
        ({"tensor_split": [1, 1, 1]}, PAIR, "parameters.tensor_split"),
        ({"tensor_split": [1, 1], "split_mode": "none"}, PAIR, "parameters.tensor_split"),
        ({"split_mode": "none", "main_gpu": 1}, (), "parameters.main_gpu"),
        ({"split_mode": "none", "main_gpu": 2}, PAIR, "parameters.main_gpu"),
    ],
)
def test_a_split_that_cannot_be_is_told(
    parameters: Mapping[str, object], devices: tuple[str, ...], path: str
) -> None:
    assert [where for where, _ in ENGINE.problems(spec(parameters, devices=devices), WHEEL)] == [path]


@pytest.mark.parametrize(("parallel", "mode"), [(Parallel(tensor=2), "row"), (Parallel(pipeline=2), "layer")])
def test_parallelism_is_an_equal_split(parallel: Parallel, mode: str) -> None:
    model = replace(spec(devices=(*PAIR, "GPU-3")), parallel=parallel)
    assert ENGINE.problems(model, WHEEL) == []
    _, one, other = ENGINE.need(model, files()).shares
    assert one == other
    flags = ENGINE.command(model, NATIVE, (), SOCKET, files()).argv
    assert flags[flags.index("--tensor-split") + 1] == "1,1"
    assert flags[flags.index("--split-mode") + 1] == mode


@pytest.mark.parametrize(
    ("parameters", "parallel", "path"),
    [
        ({"tensor_split": [1, 1]}, Parallel(tensor=2), "parameters.tensor_split"),
        ({"split_mode": "row"}, Parallel(pipeline=2), "parameters.split_mode"),
        ({"gpu_layers": 0}, Parallel(pipeline=2), "parameters.gpu_layers"),
        ({}, Parallel(2, 2), "parallel"),
    ],
)
def test_parallelism_that_llamacpp_cannot_is_told(
    parameters: Mapping[str, object], parallel: Parallel, path: str
) -> None:
    model = replace(spec(parameters), parallel=parallel)
    assert [where for where, _ in ENGINE.problems(model, WHEEL)] == [path]


def test_without_facts_the_file_is_the_weight() -> None:
    need = ENGINE.need(spec(), {"model": ModelFile(Path("/m.gguf"), 7_000_000_000, header={"vocabulary": 0})})
    assert need.bytes > 7_000_000_000


@needs_wheel
@pytest.mark.parametrize(
    ("parameters", "slots"),
    [({"context": 1024, "mmap": True}, 2), ({"context": 4096, "kv": {"k": "q8_0", "v": "q8_0"}}, 1)],
)
async def test_the_estimate_is_what_a_real_process_takes(
    parameters: dict[str, object], slots: int, gguf: Path
) -> None:
    real = {"model": ModelFile(gguf, gguf.stat().st_size, "m", facts(read_header(gguf)))}
    model = spec(parameters, slots)

    def argv(socket: str) -> tuple[str, ...]:
        return ENGINE.command(model, WHEEL, (), Address(path=socket), real).argv

    async with running(argv) as live:
        await live.healthy()
        body = {"prompt": "word " * 600, "max_tokens": 1}
        assert (await live.client.post("/v1/completions", json=body)).is_success
        status = Path(f"/proc/{live.process.pid}/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in status)
    private = sum(int(sizes[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
    (share,) = ENGINE.need(model, real).shares
    assert share.bytes == pytest.approx(private, rel=0.15)


# -- causes ---------------------------------------------------------------------------------------------


@needs_wheel
@pytest.mark.parametrize(
    ("damage", "parameters", "cause"),
    [
        ("garbage", {}, Cause.BAD_MODEL),
        ("truncated", {}, Cause.BAD_MODEL),
        ("architecture", {}, Cause.BAD_MODEL),
        ("absent", {}, Cause.BAD_MODEL),
        ("none", {"context": 800_000}, Cause.OUT_OF_MEMORY),
        ("in use", {}, Cause.PORT_IN_USE),
    ],
)
async def test_the_causes_of_real_failures(
    damage: str, parameters: dict[str, object], cause: Cause, gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    data = gguf.read_bytes()[: 50_000_000 if damage == "truncated" else None]
    if damage == "garbage":
        data = b"this is not a model" * 1000
    if damage == "architecture":
        data = data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0zzama", 1)
    if damage != "absent":
        path.write_bytes(data)
    model = {"model": ModelFile(path, len(data), "m", HEADER)}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        def argv(folder: str) -> tuple[str, ...]:
            address = Address(port=port) if damage == "in use" else Address(path=folder)
            command = ENGINE.command(spec(parameters), WHEEL, (), address, model)
            # 3 GB of address space: enough for the model, too little for a cache of 18 GB.
            return ("sh", "-c", 'ulimit -v 3000000; exec "$@"', "sh", *command.argv)

        async with running(argv) as live:
            code = await live.exited()
            assert code == 1
            assert ENGINE.cause(Exit(code), "\n".join(live.log.splitlines()[-20:])) is cause, live.log


@needs_wheel
async def test_a_parameter_that_the_wheel_lacks_and_a_stale_socket(gguf: Path) -> None:
    def argv(path: str) -> tuple[str, ...]:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        model = {"model": ModelFile(gguf, 1, "m", HEADER)}
        command = ENGINE.command(spec({"context": 256}), WHEEL, (), Address(path=path), model)
        return command.argv

    async with running(argv) as live:
        await live.healthy()

    def wrong(path: str) -> tuple[str, ...]:
        *command, parameters = argv(path)
        return (*command, json.dumps({**json.loads(parameters), "speculative.nonsense": 1}))

    async with running(wrong) as live:
        code = await live.exited()
        assert code == 2
        assert "speculative.nonsense: 1 is not a parameter of xllamacpp" in live.log
        assert ENGINE.cause(Exit(code), live.log) is Cause.BAD_ARGUMENTS


@pytest.mark.parametrize(
    ("exit", "log", "cause"),
    [
        (Exit(1), "No module named 'xllamacpp'; install modelyard[llamacpp]", Cause.NOT_INSTALLED),
        (
            Exit(1),
            "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory",
            Cause.OUT_OF_MEMORY,
        ),
        (Exit(None, 6), "CUDA error: out of memory", Cause.OUT_OF_MEMORY),
        (Exit(1), "error: invalid argument: --swa-ful", Cause.BAD_ARGUMENTS),
        (Exit(None, 9), "", Cause.KILLED),
        (Exit(None, 15), "", Cause.KILLED),
        (Exit(None, 11), "", Cause.CRASHED),
        (Exit(0), "", Cause.EXITED),
    ],
)
def test_causes_from_a_log(exit: Exit, log: str, cause: Cause) -> None:
    assert ENGINE.cause(exit, log) is cause


@pytest.mark.parametrize(
    ("parameters", "has", "lacks"),
    [
        ({}, "/v1/chat/completions", "/v1/embeddings"),
        ({"embedding": True}, "/v1/embeddings", "/v1/chat/completions"),
        ({"rerank": True}, "/v1/rerank", "/v1/embeddings"),
    ],
)
def test_paths_and_warm_up(parameters: Mapping[str, object], has: str, lacks: str) -> None:
    paths = ENGINE.paths(spec(parameters))
    assert has in paths
    assert lacks not in paths
    warmed = replace(spec(parameters), warm_up=WarmUp(("Hello there",)))
    for model in (spec(parameters), warmed):
        (call,) = ENGINE.warm_up(model)
        assert call.path in paths
    assert b"Hello there" in call.body


def test_each_slot_gets_a_prefix_after_the_prompts() -> None:
    model = replace(spec({}, slots=3), warm_up=WarmUp(("Hello",), ("Be brief.", "Be kind.")))
    names = [call.name for call in ENGINE.warm_up(model)]
    assert names == ["warm_up.prompts[0]", *(f"warm_up.prefixes[{number}]" for number in (0, 1, 0))]
    assert [json.loads(call.body).get("id_slot") for call in ENGINE.warm_up(model)] == [None, 0, 1, 2]


@pytest.mark.parametrize(
    ("parameters", "word"), [({"embedding": True}, "does not chat"), ({}, "each of its 1 slots keeps one")]
)
def test_prefixes_that_no_slot_can_keep(parameters: Mapping[str, object], word: str) -> None:
    model = replace(spec(parameters), warm_up=WarmUp((), ("Be brief.", "Be kind.")))
    ((path, message),) = ENGINE.problems(model, WHEEL)
    assert path == "warm_up.prefixes"
    assert word in message


@needs_wheel
async def test_a_prefix_is_not_computed_again(gguf: Path) -> None:
    """What is kept is the beginning of a chat with this system message, in every slot."""
    system = "You are a terse assistant of a shipyard. " * 8
    model = replace(spec({"context": 512}, slots=2), warm_up=WarmUp((), (system,)))
    file = ModelFile(gguf, gguf.stat().st_size, "m", facts(read_header(gguf)))

    def argv(path: str) -> tuple[str, ...]:
        return ENGINE.command(model, WHEEL, (), Address(path=path), {"model": file}).argv

    async def asked(slot: int, first: str) -> Mapping[str, int]:
        messages = [{"role": "system", "content": first}, {"role": "user", "content": "What is a keel?"}]
        body = {"messages": messages, "max_tokens": 1, "id_slot": slot}
        answer = await live.client.post("/v1/chat/completions", json=body)
        return dict(answer.raise_for_status().json()["timings"])

    async with running(argv) as live:
        await live.healthy()
        for call in ENGINE.warm_up(model):
            (await live.client.request(call.method, call.path, content=call.body)).raise_for_status()
        for slot in (0, 1):
            timings = await asked(slot, system)
            assert timings["cache_n"] > 70, "its system message"
            assert timings["prompt_n"] < 40, "the question alone"
        assert (await asked(0, "Something else."))["cache_n"] < 10


@needs_wheel
@pytest.mark.parametrize(
    "parameters",
    [
        {"embedding": True, "pooling": "mean"},
        {"rerank": True},
        {"ngram": "simple"},
        {"draft": {"source": "the same", "max": 4, "min": 1, "p_min": 0.5}},
        {
            "kv": {"k": "q8_0", "v": "q8_0"},
            "flash_attention": "on",
            "tensor_split": [3, 1],
            "chat_template": {"inline": "{{ messages[0].content }}"},
            "reasoning": {"format": "none", "budget": 0},
        },
    ],
    ids=lambda parameters: next(iter(parameters)),
)
async def test_the_wheel_takes_the_parameters_and_warms_up(parameters: dict[str, object], gguf: Path) -> None:
    file = ModelFile(gguf, gguf.stat().st_size, "m", facts(read_header(gguf)))
    found = dict.fromkeys(ENGINE.sources(spec(parameters)), file)
    model = spec({"context": 512, **parameters}, slots=2)

    def argv(path: str) -> tuple[str, ...]:
        return ENGINE.command(model, WHEEL, (), Address(path=path), found).argv

    async with running(argv) as live:
        await live.healthy()
        (call,) = ENGINE.warm_up(model)
        answer = await live.client.request(call.method, call.path, content=call.body)
        assert answer.status_code == 200, answer.text
        slots = (await live.client.get("/slots")).json()
    assert [slot["n_ctx"] for slot in slots] == [512, 512]
    assert {slot["speculative"] for slot in slots} == {"ngram" in parameters or "draft" in parameters}
