"""`libretranslatepy`, LibreTranslate's own client, unchanged against a server with keys."""

from __future__ import annotations

import asyncio
import json
from urllib.error import HTTPError

import pytest
from libretranslatepy import LibreTranslateAPI

from gateway.live_yard import live_yard
from gateway.translation.translators import translator

SECRET = "s" * 20
KEYS = [{"name": "app", "key": SECRET, "scopes": ["inference"]}]
TCP = {"unix": None, "port": 0}
TEXT = "The weather is very nice today & we go out \u2013 with 3 children.\nSo it is."


async def test_it_translates_detects_and_lists() -> None:
    models = {"ef": translator("en-fr"), "fd": translator("fr-de")}
    async with live_yard(models, keys=KEYS, server=TCP) as yard:
        client = LibreTranslateAPI(f"http://{yard.yard.server.address}", api_key=SECRET)
        assert await asyncio.to_thread(client.translate, TEXT, "en", "fr") == f"[fr] {TEXT}"
        assert await asyncio.to_thread(client.translate, "un", "fr", "de") == "[de] un"
        assert await asyncio.to_thread(client.translate, TEXT, "auto", "fr") == f"[fr] {TEXT}"
        assert (await asyncio.to_thread(client.detect, TEXT))[0]["language"] == "en"
        listed = await asyncio.to_thread(client.languages)
        assert [(one["code"], one["targets"]) for one in listed] == [
            ("en", ["fr"]),
            ("fr", ["de"]),
            ("de", []),
        ]
        with pytest.raises(HTTPError) as refused:
            await asyncio.to_thread(client.translate, "one", "en", "xx")
        assert refused.value.code == 400
        assert "There are de, fr." in json.loads(refused.value.read())["error"]
        stranger = LibreTranslateAPI(f"http://{yard.yard.server.address}", api_key="wrong" * 5)
        with pytest.raises(HTTPError) as wrong:
            await asyncio.to_thread(stranger.translate, "one", "en", "fr")
        assert (wrong.value.code, json.loads(wrong.value.read())["code"]) == (401, "invalid_api_key")
