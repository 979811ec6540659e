"""What sleep and wake cost on a GPU, with the transformers server's own parts and random weights of some GB.

    make bench-gpu                    # with a Python that has `modelyard[transformers]`: PYTHON=…

Prints the bandwidth of a wake against a measured pinned copy, the first token after a wake against a load by
`from_pretrained` in a new process, what is freed, and whether the scores are the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

ROUNDS = 5


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--layers", type=int, default=32, help="of 0.4 GB each")
    arguments.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the script")
    arguments.add_argument("--cold", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if given.cold:
        _load_and_generate(given.cold, given.device)
        return
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        _write(folder, given.layers)
        _measure(folder, given.device)


def _write(folder: str, layers: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        vocab_size=32000,
    )
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="4GB")


def _measure(folder: str, device: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from modelyard.servers.transformers.host_weights import HostWeights
    from modelyard.servers.transformers.weights import GpuWeights

    cold = median(_cold_start(folder, device) for _ in range(3))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    weights: Any = HostWeights(model, folder) if device == "cpu" else GpuWeights(model, device)
    tokens = torch.arange(1, 65, device=device)[None]

    def scores() -> Any:
        with torch.inference_mode():
            return model(tokens).logits.clone()

    before = scores()
    rows = []
    for _ in range(ROUNDS):
        held = _used(device)
        size, away = weights.sleep()
        freed = held - _used(device)
        start = time.perf_counter()
        _, back = weights.wake()
        after = scores()
        _wait(device)
        rows.append(
            (size / back, away, freed / size, time.perf_counter() - start, torch.equal(before, after))
        )
    bandwidth, away, freed, first, _ = (median(column) for column in zip(*rows, strict=True))
    link = _pinned_copy(size) if device == "cuda" else bandwidth
    print(
        f"weights: {size / 1e9:.1f} GB on {torch.cuda.get_device_name() if device == 'cuda' else 'the CPU'}"
    )
    print(f"asleep after {away:.2f} s; freed {freed:.1%} of the weights there")
    print(f"wake: {bandwidth / 1e9:.1f} GB/s; a pinned copy: {link / 1e9:.1f} GB/s: {bandwidth / link:.0%}")
    print(f"first token after a wake: {first:.2f} s; after from_pretrained in a new process: {cold:.2f} s:")
    print(f"    {cold / first:.1f} times faster")
    print(f"scores the same to the bit in {sum(row[-1] for row in rows)} of {ROUNDS} wakes")


def _cold_start(folder: str, device: str) -> float:
    """Seconds from the start of a process to its first scores."""
    start = time.time()
    argv = [sys.executable, __file__, "--cold", folder, "--device", device]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=1800).stdout
    return float(json.loads(said.splitlines()[-1])["ready"]) - start


def _load_and_generate(folder: str, device: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    with torch.inference_mode():
        model(torch.arange(1, 65, device=device)[None]).logits.cpu()
    print(json.dumps({"ready": time.time()}))


def _pinned_copy(size: int) -> float:
    """Bytes a second from pinned host memory to the GPU, by one copy of this size."""
    import torch

    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(size, dtype=torch.uint8, device="cuda")
    return size / median(_timed(lambda: device.copy_(host, non_blocking=True)) for _ in range(ROUNDS))


def _timed(call: Callable[[], object]) -> float:
    _wait("cuda")
    start = time.perf_counter()
    call()
    _wait("cuda")
    return time.perf_counter() - start


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _used(device: str) -> int:
    """Bytes in use: of the GPU by anybody, of host RAM by this process."""
    import torch

    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(total - free)
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
