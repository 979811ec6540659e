"""The vLLM adapter: flags, the estimate, and the causes that its real logs tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.core.types import Address, Cause, Charge, Parallel, Placement, Spec, WarmUp
from modelyard.engines.base import Command, Exit, Files, ModelFile, Profile
from modelyard.engines.vllm import VllmEngine
from modelyard.engines.vllm_memory import CUDA_CONTEXT, CUDA_GRAPHS, PROCESS
from modelyard.errors import BadFile

ENGINE = VllmEngine()
PROFILE = Profile("vllm", "vllm", found={"vllm": "/opt/bin/vllm"})
SOCKET = Address(path="/run/i1.sock")
BLOCK = 128
GB = 10**9

# Two layers of 3 heads of 64, for 1,000 tokens at most.
CONFIG: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 1000,
    "num_attention_heads": 9,
    "num_hidden_layers": 2,
    "num_key_value_heads": 3,
    "vocab_size": 100,
}
HEADER: Mapping[str, object] = {
    "kind": "safetensors",
    "bytes": 50_000_000,
    "parameters": 25_000_000,
    "dtypes": {"BF16": 25_000_000},
    "config": CONFIG,
}
PER_TOKEN = 2 * 2 * 3 * 64 * 2


def spec(parameters: Mapping[str, object] | None = None, **more: object) -> Spec:
    plain = Spec("qwen", "d" * 64, "vllm", "/models/qwen", parameters or {}, devices=("ram",))
    return replace(plain, **more)  # type: ignore[arg-type]


def on_gpus(parameters: Mapping[str, object] | None = None, **more: object) -> Spec:
    return spec(parameters, devices=(), **more)


def files(header: Mapping[str, object] = HEADER, **more: int) -> Files:
    found = {"model": ModelFile(Path("/c/qwen"), 51_000_000, "m1", header)}
    return found | {role: ModelFile(Path(f"/c/{role}"), size, role) for role, size in more.items()}


def command(spec: Spec, placement: Placement = (), files: Files = files()) -> Command:  # noqa: B008
    return ENGINE.command(spec, PROFILE, placement, SOCKET, files)


def line(spec: Spec, placement: Placement = (), files: Files = files()) -> str:  # noqa: B008
    return " ".join(command(spec, placement, files).argv)


class TestCommand:
    def test_on_the_cpu(self) -> None:
        made = command(spec({"context": 512, "enforce_eager": True}, slots=2))
        assert " ".join(made.argv) == (
            "/opt/bin/vllm serve /c/qwen --uds /run/i1.sock --served-model-name qwen"
            f" --max-model-len 512 --max-num-seqs 2 --kv-cache-memory-bytes {9 * BLOCK * PER_TOKEN}"
            " --max-num-batched-tokens 1024 --enforce-eager --disable-uvicorn-access-log"
        )
        assert made.environment == {
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_COLOR": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_RPC_BASE_PATH": ".",
        }
        assert made.own_folder

    def test_on_gpus_with_everything(self) -> None:
        full = on_gpus(
            {
                "context": 0,
                "dtype": "float16",
                "quantization": "awq",
                "kv_cache_dtype": "fp8",
                "kv_cache_mib": 10,
                "batch": 4096,
                "prefix_caching": False,
                "enforce_eager": False,
                "seed": 7,
                "lora": [{"source": "hf://me/fine"}],
                "lora_rank": 32,
                "chat_template": {"file": "/t.jinja"},
                "tool_call_parser": "hermes",
                "reasoning_parser": "qwen3",
                "draft": {"source": "hf://me/draft", "max": 3},
                "sleep_mode": True,
                "extra_args": ["--swap", "1"],
            },
            slots=3,
            parallel=Parallel(2, 2),
        )
        placement = (
            Charge("ram", 1, total=1),
            *(Charge(f"GPU-{number}", 6 * GB, total=(24 + number) * GB) for number in range(4)),
        )
        made = command(full, placement, files(lora0=1000, draft=2000))
        assert " ".join(made.argv) == (
            "/opt/bin/vllm serve /c/qwen --uds /run/i1.sock --served-model-name base --enable-lora"
            ' --lora-modules {"name": "qwen", "path": "/c/lora0"} --max-model-len 1000 --max-num-seqs 3'
            f" --kv-cache-memory-bytes {10 << 20} --gpu-memory-utilization 0.2250"
            " --tensor-parallel-size 2 --pipeline-parallel-size 2"
            " --dtype float16 --quantization awq --kv-cache-dtype fp8 --max-num-batched-tokens 4096"
            " --no-enable-prefix-caching --no-enforce-eager --seed 7 --max-lora-rank 32"
            " --chat-template /t.jinja --tool-call-parser hermes --reasoning-parser qwen3"
            " --enable-sleep-mode"
            ' --speculative-config {"model": "/c/draft", "num_speculative_tokens": 3}'
            " --disable-uvicorn-access-log --enable-auto-tool-choice --swap 1"
        )
        assert made.environment["VLLM_SERVER_DEV_MODE"] == "1"

    @pytest.mark.parametrize(
        ("parameters", "expected"),
        [
            (
                {"embedding": True, "pooling": "mean"},
                '--convert embed --pooler-config {"pooling_type": "MEAN"}',
            ),
            ({"rerank": True}, "--runner pooling --convert classify"),
            ({"chat_template": {"inline": "{{ messages }}"}}, "--chat-template {{ messages }}"),
            ({"ngram": 4}, '--speculative-config {"method": "ngram", "num_speculative_tokens": 4}'),
        ],
    )
    def test_flags_of(self, parameters: Mapping[str, object], expected: str) -> None:
        assert expected in line(spec(parameters))

    @pytest.mark.parametrize(
        ("parameters", "config", "slots", "tokens"),
        [
            ({"context": 8192}, {}, 1, 2048),
            ({"context": 8192, "batch": 512}, {}, 1, 512),
            ({"context": 8192, "batch_size": 4096}, {}, 1, 4096),
            ({"context": 512}, {}, 3, 1536),
            ({"context": 8192, "embedding": True}, {}, 1, 8192),
            ({"context": 8192, "rerank": True}, {}, 1, 8192),
            ({"context": 4096}, {"is_encoder_decoder": True}, 2, 4096),
            ({"context": 4096}, {"text_config": CONFIG}, 4, 8192),
        ],
    )
    def test_it_computes_as_many_tokens_at_once_as_are_counted(
        self, parameters: Mapping[str, object], config: Mapping[str, object], slots: int, tokens: int
    ) -> None:
        made_for = files({**HEADER, "config": {**CONFIG, **config}})
        asked, said = (spec({**parameters, **batch}, slots=slots) for batch in ({}, {"batch": tokens}))
        assert f" --max-num-batched-tokens {tokens} " in line(asked, files=made_for)
        assert ENGINE.need(asked, made_for) == ENGINE.need(said, made_for)

    def test_on_a_port(self) -> None:
        made = ENGINE.command(spec(), PROFILE, (), Address(port=4567), files())
        assert "--host 127.0.0.1 --port 4567" in " ".join(made.argv)
        assert "--uds" not in made.argv

    def test_of_a_profile_with_a_program_of_its_own(self) -> None:
        own = Profile("nightly", "vllm", program="/venv/bin/vllm", found=PROFILE.found)
        assert ENGINE.command(spec(), own, (), SOCKET, files()).argv[0] == "/venv/bin/vllm"

    def test_of_a_model_that_nobody_knows_leaves_the_cache_to_the_engine(self) -> None:
        unknown = files({"kind": "safetensors", "config": {}})
        assert "--kv-cache-memory-bytes" not in line(spec(), files=unknown)
        assert not ENGINE.need(spec(), unknown).known


class TestNeed:
    def test_on_the_cpu_is_three_processes_weights_and_cache(self) -> None:
        small, large = (
            ENGINE.need(spec({"context": size, "batch": 256}, slots=2), files()) for size in (128, 256)
        )
        assert [share.on for share in small.shares] == ["ram"]
        assert large.bytes - small.bytes == 2 * BLOCK * PER_TOKEN
        assert small.bytes > 3 * PROCESS + 50_000_000 + 3 * BLOCK * PER_TOKEN
        assert small.known

    def test_on_a_gpu_its_processes_stay_in_host_memory(self) -> None:
        eager, graphs = (ENGINE.need(on_gpus({"enforce_eager": flag}), files()) for flag in (True, False))
        ram, gpu = eager.shares
        assert (ram.on, ram.bytes, gpu.on) == ("ram", 2 * PROCESS, "accelerator")
        assert gpu.bytes > 50_000_000 + CUDA_CONTEXT
        assert graphs.bytes - eager.bytes == CUDA_GRAPHS

    def test_over_devices_is_in_equal_parts(self) -> None:
        whole = {**CONFIG, "num_key_value_heads": 8, "head_dim": 64}
        model = files({**HEADER, "config": whole})
        one = ENGINE.need(on_gpus(), model).shares[1].bytes
        ram, *four = ENGINE.need(on_gpus(parallel=Parallel(2, 2)), model).shares
        assert [share.bytes for share in four] == [four[0].bytes] * 4
        cache = 9 * BLOCK * 2 * 2 * 8 * 64 * 2
        assert one - four[0].bytes == (50_000_000 + cache) * 3 // 4
        assert ram.bytes == 6 * PROCESS

    def test_counts_weights_in_the_type_that_is_computed_with(self) -> None:
        single = {**HEADER, "bytes": 100_000_000, "dtypes": {"F32": 25_000_000}}
        half = ENGINE.need(spec(), files())
        assert ENGINE.need(spec(), files(single)).bytes == half.bytes
        assert ENGINE.need(spec({"dtype": "float32"}), files()).bytes >= half.bytes + 50_000_000

    def test_counts_a_draft_and_an_adapter(self) -> None:
        alone = ENGINE.need(spec(), files())
        both = ENGINE.need(spec(), files(lora0=1000, draft=2000))
        assert both.bytes - alone.bytes == 3000

    def test_of_latent_attention(self) -> None:
        latent = files({**HEADER, "config": {**CONFIG, "kv_lora_rank": 512, "qk_rope_head_dim": 64}})
        wider = ENGINE.need(spec({"context": 256, "batch": 128}), latent).bytes
        assert (
            wider - ENGINE.need(spec({"context": 128, "batch": 128}), latent).bytes
            == BLOCK * 2 * (512 + 64) * 2
        )

    def test_of_a_model_that_sees_counts_its_language_part(self) -> None:
        seeing = files({**HEADER, "config": {"architectures": ["XForCausalLM"], "text_config": CONFIG}})
        assert ENGINE.need(spec(), seeing) == ENGINE.need(spec(), files())

    def test_of_a_file_that_is_no_folder_is_refused(self) -> None:
        gguf = files({"general.architecture": "llama"})
        with pytest.raises(BadFile, match="/c/qwen is no folder of safetensors"):
            ENGINE.need(spec(), gguf)


class TestSpec:
    @pytest.mark.parametrize(
        ("parameters", "context"), [({}, 1000), ({"context": 0}, 1000), ({"context": 64}, 64)]
    )
    def test_context(self, parameters: Mapping[str, object], context: int) -> None:
        assert ENGINE.context(spec(parameters), files()) == context

    def test_a_long_context_is_taken_when_it_is_asked_for_alone(self) -> None:
        long = files({**HEADER, "config": {**CONFIG, "max_position_embeddings": 131072}})
        assert ENGINE.context(spec(), long) == 4096
        assert ENGINE.context(spec({"context": 0}), long) == 131072

    @pytest.mark.parametrize(
        ("architecture", "suited"),
        [
            ("LlamaForCausalLM", {}),
            ("Qwen2_5_VLForConditionalGeneration", {}),
            ("BertModel", {"embedding": True}),
            ("XLMRobertaForSequenceClassification", {"rerank": True}),
        ],
    )
    def test_what_a_model_was_made_for(self, architecture: str, suited: Mapping[str, object]) -> None:
        model = files({**HEADER, "config": {**CONFIG, "architectures": [architecture]}})
        assert ENGINE.suited(spec(), model) == suited
        assert not ENGINE.suited(spec({"embedding": True}), model)

    def test_the_warm_up_says_its_prefixes_to_the_prefix_cache(self) -> None:
        asked = spec(warm_up=WarmUp(("one",), ("Be brief.",)))
        assert [call.path for call in ENGINE.warm_up(asked)] == ["/v1/chat/completions"] * 2
        assert [call.path for call in ENGINE.warm_up(spec({"embedding": True}))] == ["/v1/embeddings"]

    @pytest.mark.parametrize(
        ("parameters", "path"),
        [
            ({"dtype": "int3"}, "parameters.dtype"),
            ({"quantization": "--kv-transfer-config.a"}, "parameters.quantization"),
            ({"kv_cache_dtype": "-O3"}, "parameters.kv_cache_dtype"),
            ({"tool_call_parser": "--a.b"}, "parameters.tool_call_parser"),
            ({"reasoning_parser": "--a.b"}, "parameters.reasoning_parser"),
            ({"chat_template": {"inline": "-{{ messages }}"}}, "parameters.chat_template.inline"),
            ({"chat_template": {"file": "chat.jinja"}}, "parameters.chat_template.file"),
            ({"chat_template": {"inline": "/etc/passwd"}}, "parameters.chat_template.inline"),
            ({"lora": [{"source": "a"}, {"source": "b"}]}, "parameters.lora"),
            ({"lora": []}, "parameters.lora"),
            ({"draft": {"max": 2}}, "parameters.draft.source"),
            ({"draft": {"source": "a"}, "ngram": 3}, "parameters.ngram"),
            ({"embedding": True, "rerank": True}, "parameters.rerank"),
            ({"chat_template": {"inline": "{{ a }}", "file": "/b"}}, "parameters.chat_template"),
            ({"sleep_mode": True}, "parameters.sleep_mode"),
            ({"tensor_parallel": 2}, "parameters.tensor_parallel"),
        ],
    )
    def test_what_is_wrong_is_named(self, parameters: Mapping[str, object], path: str) -> None:
        assert [found for found, _ in ENGINE.problems(spec(parameters), PROFILE)] == [path]

    def test_prefixes_are_for_a_model_that_chats(self) -> None:
        prefixes = WarmUp(prefixes=("Be brief.",))
        assert ENGINE.problems(spec(warm_up=prefixes), PROFILE) == []
        silent = spec({"embedding": True}, warm_up=prefixes)
        assert [path for path, _ in ENGINE.problems(silent, PROFILE)] == ["warm_up.prefixes"]

    def test_without_the_program_it_says_how_to_get_it(self) -> None:
        assert "pip install vllm" in ENGINE.missing(Profile("vllm", "vllm"))
        assert ENGINE.missing(PROFILE) == ""


class TestSleep:
    def test_is_offered_when_it_is_asked_for(self) -> None:
        assert not ENGINE.rungs(on_gpus(), files())
        first, second = ENGINE.rungs(on_gpus({"sleep_mode": True}), files())
        assert [(call.method, call.path) for call in (*first.sleep, *first.wake)] == [
            ("POST", "/sleep?level=1"),
            ("POST", "/wake_up"),
        ]
        assert [(call.path, call.body) for call in (*second.sleep, *second.wake)] == [
            ("/sleep?level=2", b""),
            ("/wake_up?tags=weights", b""),
            ("/collective_rpc", b'{"method": "reload_weights"}'),
            ("/wake_up?tags=kv_cache", b""),
        ]

    def test_keeps_weights_in_host_memory_or_nowhere_and_the_context_of_cuda(self) -> None:
        spec = on_gpus({"sleep_mode": True, "enforce_eager": True}, parallel=Parallel(2))
        first, second = ENGINE.rungs(spec, files())
        assert [(share.on, share.bytes) for share in second.shares] == [
            ("ram", 4 * PROCESS),
            ("accelerator", CUDA_CONTEXT),
            ("accelerator", CUDA_CONTEXT),
        ]
        assert first.shares[0].bytes == 4 * PROCESS + 50_000_000
        assert first.shares[1:] == second.shares[1:]

    @pytest.mark.parametrize("with_it", [files(lora0=1000), files(draft=1000)])
    def test_what_is_not_in_the_models_files_alone_keeps_its_weights(self, with_it: Files) -> None:
        rungs = ENGINE.rungs(on_gpus({"sleep_mode": True}), with_it)
        assert [rung.name for rung in rungs] == ["level-1"]

    @pytest.mark.parametrize(
        "config",
        [
            {**CONFIG, "quantization_config": {"quant_method": "awq"}},
            {"text_config": {**CONFIG, "quantization_config": {"quant_method": "fp8"}}},
            {"quantization_config": {"quant_method": "fp8"}, "text_config": CONFIG},
        ],
    )
    def test_quantized_weights_are_kept(self, config: Mapping[str, object]) -> None:
        rungs = ENGINE.rungs(on_gpus({"sleep_mode": True}), files({**HEADER, "config": config}))
        assert [rung.name for rung in rungs] == ["level-1"]


METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="smol/name"} 2.0
vllm:num_requests_waiting{engine="0",model_name="smol/name"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="smol/name",reason="capacity"} 1.0
"""


def test_what_runs_and_what_waits_is_counted() -> None:
    assert ENGINE.count_busy(METRICS) == 3
    with pytest.raises(ValueError, match="does not tell"):
        ENGINE.count_busy(b"vllm:kv_cache_usage_perc 0.0\n")


LOGS = {  # what vLLM 0.32 wrote, the frames of its tracebacks left out
    Cause.BAD_ARGUMENTS: (
        "vllm: error: unrecognized arguments: --no-such-flag 1",
        "vllm serve: error: argument --dtype: invalid choice: 'int3' (choose from 'auto', 'bfloat16')",
        "KeyError: 'invalid tool call parser: nope (chose from { hermes,mistral })'",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len",
    ),
    Cause.OUT_OF_MEMORY: (
        "ValueError: Available memory on node 0 (13.03/15.71 GiB) on kv cache allocation is less than"
        " requested memory for kv (838.19 GiB). Decrease --kv-cache-memory-bytes",
        "ValueError: Free memory on device cuda:0 (3.1/23.6 GiB) on startup is less than desired GPU memory"
        " utilization (0.9, 21.2 GiB).",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ),
    Cause.PORT_IN_USE: ("OSError: [Errno 98] Address already in use",),
    Cause.BAD_MODEL: (
        "(Worker pid=1) ERROR 11-22 01:20:00 [x.py:1] safetensors._safetensors_rust.SafetensorError: Error"
        " while deserializing header: incomplete metadata, file not fully covered",
        "(Worker pid=8721) ERROR 11-22 01:17:38 [multiproc_executor.py:953] RuntimeError: Cannot find any"
        " model weights with `bad/noweights`\n"
        "(EngineCore pid=8323) Exception: WorkerProc initialization failed due to an exception in a"
        " background process. See stack trace for root cause.\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, Invalid repository ID or local directory specified: 'bad/noconfig'.",
    ),
    Cause.CRASHED: ("", "OverflowError: cannot fit 'int' into an index-sized integer"),
}


@pytest.mark.parametrize(("cause", "log"), [(cause, log) for cause, logs in LOGS.items() for log in logs])
def test_causes(cause: Cause, log: str) -> None:
    assert ENGINE.cause(Exit(1), log) is cause


def test_a_log_tells_the_errors_that_came_first() -> None:
    noise = [f"(Worker pid=1) INFO 11-22 01:17:38 [x.py:1] line {number}" for number in range(20)]
    far, argument = LOGS[Cause.BAD_MODEL][1], LOGS[Cause.BAD_ARGUMENTS][3]
    assert ENGINE.telling("\n".join([far, *noise])) == (
        "RuntimeError: Cannot find any model weights with `bad/noweights`"
    )
    assert ENGINE.telling("\n".join([argument, *noise])) == argument.replace("\n", "")
    assert ENGINE.telling("\n".join(noise)).count("\n") == 7
