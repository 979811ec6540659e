"""The reference of every endpoint, and the pages: they say what is so, and need nobody but this server."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import jsonschema_rs
import pytest

from gateway.live_yard import fake, live_yard
from modelyard.errors import BY_CODE
from modelyard.gateway.inference import KINDS, TRANSLATED
from modelyard.gateway.reference import EVERYWHERE, PREDICT, lanes
from modelyard.gateway.translation.reference import PATHS
from waiting import until

KEYS = [
    {"name": "user", "key": "u" * 20, "scopes": ["inference"]},
    {"name": "operator", "key": "o" * 20, "scopes": ["admin"]},
]
ELSEWHERE = re.compile(r"https?:|wss?:|@import|[\"'(]//", re.IGNORECASE)


def operations(reference: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of everything that there is."""
    for path, found in reference["paths"].items():
        for method, operation in found.items():
            yield method.upper(), path, operation


async def reference_of(**settings: Any) -> dict[str, Any]:
    async with live_yard({"a": fake()}, **settings) as yard:
        found: dict[str, Any] = (await yard.http.get("/openapi.json")).json()
        return found


def test_every_lane_is_described() -> None:
    assert {getattr(route, "path", "") for route in lanes().routes} == {
        *(*KINDS, *TRANSLATED, PREDICT),
        *PATHS,
    }


async def test_every_error_that_a_server_sends_is_named() -> None:
    named = {error.code for error in EVERYWHERE}
    for _, _, operation in operations(await reference_of()):
        for status, answer in operation["responses"].items():
            codes = answer.get("x-codes", ())
            assert codes or status != "422", "nothing but our own errors answers so"
            named.update(codes)
    assert named == set(BY_CODE) - {"config_error", "server_unreachable"}


async def test_keys_are_asked_for_as_described() -> None:
    async with live_yard({"a": fake()}, keys=KEYS) as yard:
        reference = (await yard.http.get("/openapi.json")).json()
        for method, path, operation in operations(reference):
            if path == "/admin/events":
                continue  # it does not end; its path is like that of the others
            where = path.replace("{name}", "nobody").replace("{instance}", "nothing")
            scopes = {scope for way in operation["security"] for names in way.values() for scope in names}
            answer = await yard.http.request(method, where)
            assert (answer.status_code == 401) == bool(operation["security"]), path
            for key in KEYS:
                headers = {"authorization": f"Bearer {key['key']}"}
                answer = await yard.http.request(method, where, headers=headers)
                assert (answer.status_code == 403) == bool(scopes - set(key["scopes"])), (path, key)


async def test_no_keys_are_described_where_none_are_asked_for() -> None:
    reference = await reference_of()
    assert "securitySchemes" not in reference["components"]
    assert not any("security" in operation for _, _, operation in operations(reference))


async def test_it_is_made_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = [], threading.Event()

    def slow(*_: object, **__: object) -> dict[str, Any]:
        begun.append(threading.current_thread())
        assert go.wait(20)
        return {}

    monkeypatch.setattr("modelyard.gateway.reference.document", slow)
    async with live_yard({"a": fake()}) as yard:
        asked = [asyncio.create_task(yard.http.get("/openapi.json")) for _ in range(3)]
        await until(lambda: begun)
        for _ in range(3):  # by now, the others are in the server
            assert (await yard.http.get("/health")).status_code == 200
        go.set()
        assert [(await each).json() for each in asked] == [{}] * 3
    assert len(begun) == 1


async def test_every_body_and_success_has_an_example_that_is_true() -> None:
    reference = await reference_of()
    shapes = json.loads(json.dumps(reference["components"]["schemas"]).replace("components/schemas", "$defs"))
    for method, path, operation in operations(reference):
        answers = {status: one for status, one in operation["responses"].items() if status[0] == "2"}
        assert all("content" in answer or status == "204" for status, answer in answers.items())
        asked = [operation["requestBody"]] if "requestBody" in operation else []
        for place in (*asked, *answers.values()):
            for media, content in place.get("content", {}).items():
                assert content["example"] not in (None, ""), (method, path)
                if media == "application/json":
                    schema = json.loads(json.dumps(content["schema"]).replace("components/schemas", "$defs"))
                    jsonschema_rs.validate({**schema, "$defs": shapes}, content["example"])
                elif media != "multipart/form-data":
                    assert isinstance(content["example"], str), (method, path)


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_names_no_foreign_host(path: str) -> None:
    async with live_yard({"a": fake()}) as yard:
        page = await yard.http.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert ELSEWHERE.findall(page.text) == []
    assert "function make(" in page.text, "what the pages share is in it"
    assert "color-scheme: light dark" in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'self'" in policy
    assert ELSEWHERE.findall(policy) == []


def test_every_page_is_looked_at() -> None:
    pages = {page.name for page in files("modelyard.ui").iterdir() if page.name.endswith(".html")}
    assert pages == {"index.html", "docs.html"}
