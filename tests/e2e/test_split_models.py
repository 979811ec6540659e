"""A real model in three files, served by llama.cpp: fetched part by part, the same model as in one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.demo_model import SIZE, demo_gguf
from engines.gguf_parts import split_gguf
from gateway.live_yard import live_yard
from store.front import front_of
from store.origins import Files
from store.test_changed_files import flip
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_parts_of_a_web_server_are_one_model(tmp_path: Path) -> None:
    paths = split_gguf(demo_gguf(), tmp_path, 3, "smol")
    files = Files({path.name: path.read_bytes() for path in paths})
    fields = {
        "engine": "llamacpp",
        "devices": ["ram"],
        "parameters": {"context": 512},
        "max_wait": "2m",
        "load_cap": "2m",
    }
    with front_of(files.web) as front:
        models = {
            "split": {**fields, "source": f"{front.url}/files/{paths[0].name}"},
            "whole": {**fields, "source": str(demo_gguf())},
        }
        store = {"allow_private": ["127.0.0.0/8"]}
        async with live_yard(models, memory=2_000_000_000, store=store) as yard:
            said = {}
            for name in models:
                answer = await yard.chat(name, tokens=12, temperature=0)
                assert answer.status == 200
                said[name] = answer.body["choices"][0]["message"]["content"]
                entry = yard.yard.names.resolve(name)
                assert entry.files is not None
            assert said["split"] == said["whole"] != ""
            entry = yard.yard.names.resolve("split")
            assert entry.files is not None
            file = entry.files["model"]
            assert SIZE < file.size < SIZE + 4096
            assert len(file.paths) == 3
            pruned = await yard.post("/admin/cache/prune", {"files": ["split"]})
            assert (pruned.status, len(pruned.body["in_use"])) == (200, 3)
            await yard.unload("split")
            flip(file.paths[1], 1_000_000)
            answer = await yard.post("/admin/models/split/load")
            assert (answer.status, answer.code) == (503, "checksum_mismatch")
            assert paths[1].name in answer.message

            async def serves() -> bool:  # once it is tried again: the part is fetched anew
                return (await yard.chat("split", tokens=2)).status == 200

            await until(serves, 60)
            await yard.unload("split")
            pruned = await yard.post("/admin/cache/prune", {"files": [models["split"]["source"]]})
            assert len(pruned.body["removed"]) == 3
            assert not file.path.exists()
