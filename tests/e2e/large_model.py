"""A model of SmolLM2's kind with random weights of 4 GiB and more, and its tokenizer, as a folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psutil

from e2e.heavy import MODEL, PYTHON, absent

LARGE = 4 << 30
_CODE = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
source, folder = sys.argv[1:]
config = AutoConfig.from_pretrained(source, hidden_size=2048, intermediate_size=8192, num_hidden_layers=36,
    num_attention_heads=32, num_key_value_heads=8, head_dim=64)
torch.manual_seed(1)
torch.set_default_dtype(torch.bfloat16)
AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="2GB")
AutoTokenizer.from_pretrained(source).save_pretrained(folder)
"""


def no_room(folder: Path) -> str:
    """Why it cannot be written there and run; empty when it can."""
    free = min(psutil.virtual_memory().available - (6 << 30), shutil.disk_usage(folder).free - (10 << 30))
    return absent(PYTHON) or ("" if free >= LARGE else "needs 10 GB of memory and 15 GB on the disk")


def write(folder: Path) -> None:
    argv = [str(PYTHON), "-c", _CODE, str(MODEL), str(folder)]
    subprocess.run(argv, check=True, timeout=600, capture_output=True)
