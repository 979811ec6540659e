"""`modelyard key` against a running server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from cli.command_line import run
from gateway.live_yard import child_yard, fake, short_folder


async def test_keys_are_made_listed_and_removed() -> None:
    with short_folder() as folder:
        async with child_yard(folder, {"a": fake()}) as yard:

            async def order(*words: str, code: int = 0, **environment: Any) -> str:
                url = f"unix:{yard.socket}"
                done = await asyncio.to_thread(run, *words, "--url", url, **environment)
                assert done.returncode == code, done.stdout + done.stderr
                return done.stdout if code == 0 else done.stderr

            assert "scope admin" in await order("key", "add", "app", code=1)
            boss = (await order("key", "add", "boss", "--scope", "admin", "--scope", "inference")).strip()
            assert boss.startswith("my-")
            assert "No API key" in await order("key", "ls", code=1)
            known: dict[str, Any] = {"MODELYARD_API_KEY": boss}
            made = await order("key", "add", "org/app", "--expires", "30d", "--json", **known)
            app = json.loads(made)
            assert (app["scopes"], app["max_priority"]) == (["inference"], "normal")
            listed = await order("key", "ls", **known)
            rows = {line.split()[0]: line for line in listed.splitlines() if line.strip()}
            assert "admin + inference" in rows["boss"]
            assert "never" in rows["boss"]
            assert "in 720" in rows["org/app"]
            assert app["key"] not in listed
            assert "expires_in" in await order("key", "add", "x", "--expires", "soon", code=1, **known)
            assert "There is no key 'x'" in await order("key", "rm", "x", code=1, **known)
            assert await order("key", "rm", "org/app", **known) == "org/app is gone\n"
            assert [one["name"] for one in json.loads(await order("key", "ls", "--json", **known))] == [
                "boss"
            ]
