"""A model whose process has little memory: what it has none for is asked again of the next one, and in the
end answered or refused; nobody waits for ever."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.live_yard import live_yard
from modelyard.servers.translation import packed
from modelyard.servers.translation.room import _field
from servers.live import running
from servers.translation import random_models

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
pytest.importorskip("ctranslate2")
TEXT = "the red house is old"
ROOM = 30_000_000  # bytes beyond what a process takes that is idle
WIDE: dict[str, Any] = {"beam_size": 5, "threads": 1, "replicas": 1, "max_batch_tokens": 1_000_000}


async def taken(folder: Path) -> int:
    """The addresses that such a process has in use before it translates, in bytes."""
    packed.pack(folder, folder.parent / "packed", "int8")

    def argv(socket: str) -> list[str]:
        told = {"address": f"unix:{socket}", "path": str(folder.parent / "packed"), **WIDE}
        return [sys.executable, "-m", "modelyard.servers.ctranslate2", json.dumps(told)]

    async with running(argv) as live:
        await live.healthy()
        body = {"q": TEXT, "source": "en", "target": "fr"}
        assert (await live.client.post("/translate", json=body)).status_code == 200
        return _field(f"/proc/{live.process.pid}/status", "VmSize:")


async def test_what_has_no_memory_is_answered_in_the_end_or_refused(tmp_path: Path) -> None:
    folder = random_models.m2m100(tmp_path / "m2m100")
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *.ctranslate2*) ulimit -v {(await taken(folder) + ROOM) // 1024};; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    model = {"engine": "narrow", "source": str(folder), "devices": ["ram"], "parameters": WIDE}
    engines = {"narrow": {"type": "ctranslate2", "program": str(program)}}
    async with live_yard({"m": model}, engines=engines) as yard:
        yard.http.timeout = httpx.Timeout(120)

        async def ask(texts: int) -> tuple[int, Any]:
            body = {"q": "\n".join([TEXT] * texts), "source": "en", "target": "fr"}
            answer = await yard.post("/translate", body)
            return answer.status, answer.body

        _, right = await ask(1)
        large = [asyncio.create_task(ask(4_500)) for _ in range(3)]
        small = [await ask(1) for _ in range(20)]
        assert [status for status, _ in small] == [200] * 20, small
        assert all(body["translatedText"] == right["translatedText"] for _, body in small)
        for status, body in await asyncio.gather(*large):
            if status == 200:
                assert body["translatedText"].splitlines() == [right["translatedText"]] * 4_500
            else:
                assert status in {502, 503}, body
                assert body["code"] in {"engine_died", "engine_unreachable", "load_failed"}
