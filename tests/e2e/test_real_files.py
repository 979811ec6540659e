"""A real engine on a file of 98 MB: read once, not again while it stays the same, not used when edited."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from engines.demo_model import SIZE, demo_gguf
from gateway.live_yard import live_yard
from store.test_changed_files import flip

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_a_file_is_read_once_and_an_edit_is_found_before_the_engine_starts(tmp_path: Path) -> None:
    path = tmp_path / "smol.gguf"
    shutil.copyfile(demo_gguf(), path)
    whole = sha256(path.read_bytes()).hexdigest()
    model = {
        "engine": "llamacpp",
        "source": str(path),
        "devices": ["ram"],
        "parameters": {"context": 512},
        "max_wait": "2m",
        "load_cap": "2m",
    }
    async with live_yard({"m": model}) as yard:
        for _ in range(2):
            assert (await yard.chat("m", tokens=2)).status == 200
            await yard.unload("m")
            assert yard.yard.store.hashed == SIZE
        flip(path, SIZE // 2)
        answer = await yard.post("/admin/models/m/load")
        assert (answer.status, answer.code) == (503, "checksum_mismatch")
        assert whole in answer.message
        assert sha256(path.read_bytes()).hexdigest() in answer.message
        assert len(yard.notes("ready")) == 2
