"""Who may come in: keys, scopes, classes, hosts and origins, asked through the whole server."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.answers import Answer
from gateway.live_yard import LiveYard, body_of, fake, live_yard
from modelyard import compose, config
from modelyard.config.problems import ConfigErrors

CHAT = "/v1/chat/completions"
USER, ADMIN, BOTH = "u" * 20, "a" * 20, "b" * 20
KEYS = [
    {"name": "user", "key": USER, "scopes": "inference", "max_priority": "normal"},
    {"name": "operator", "key": ADMIN, "scopes": ["admin"]},
    {"name": "both", "key": BOTH, "scopes": ["inference", "admin"], "max_priority": "high"},
]


async def ask(yard: LiveYard, method: str, path: str, headers: dict[str, str]) -> Answer:
    """A request; a POST carries a short chat."""
    body = body_of("a", "hi", 1, False, {}) if method == "POST" and not path.startswith("/admin") else None
    response = await yard.http.request(method, path, json=body, headers=headers)
    is_json = response.headers["content-type"].startswith("application/json")
    return Answer(response.status_code, dict(response.headers), response.json() if is_json else {})


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class TestKeys:
    async def test_are_asked_for_everywhere_but_at_the_open_door(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
                assert (await ask(yard, "GET", path, {})).status == 200, path
            closed = [
                ("POST", CHAT),
                ("POST", "/generate"),
                ("GET", "/v1/models"),
                ("GET", "/v1/models/a"),
                ("GET", "/metrics"),
                ("GET", "/admin/status"),
                ("POST", "/admin/models/a/load"),
                ("GET", "/no/such/path"),
            ]
            for method, path in closed:
                for headers in ({}, bearer("x"), bearer(USER[:-1]), {"x-api-key": ""}, bearer(f"{USER}x")):
                    answer = await ask(yard, method, path, headers)
                    assert (answer.status, answer.code) == (401, "invalid_api_key"), (path, headers)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert answer.body["error"]["type"] == "authentication_error"
                    assert USER not in str(answer.body)
            assert yard.state.sequence == 0

    async def test_are_sent_in_either_header(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            for headers in (bearer(USER), {"x-api-key": USER}, {"authorization": f"bearer  {USER}"}):
                for _ in range(2):
                    assert (await ask(yard, "POST", CHAT, headers)).status == 200, headers

    async def test_open_what_their_scopes_say(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            for key, method, path, status in (
                (USER, "POST", CHAT, 200),
                (USER, "GET", "/v1/models", 200),
                (USER, "GET", "/metrics", 200),
                (USER, "GET", "/admin/status", 403),
                (USER, "POST", "/admin/models/a/unload", 403),
                (USER, "GET", "/v1/engines", 403),
                (ADMIN, "GET", "/admin/status", 200),
                (ADMIN, "GET", "/v1/engines", 200),
                (ADMIN, "GET", "/metrics", 200),
                (ADMIN, "POST", CHAT, 403),
                (ADMIN, "GET", "/v1/models", 403),
                (BOTH, "POST", CHAT, 200),
                (BOTH, "GET", "/admin/status", 200),
            ):
                answer = await ask(yard, method, path, bearer(key))
                assert answer.status == status, (key, path)
                if status == 403:
                    assert answer.code == "forbidden"
                    name, scope = ("user", "admin") if key == USER else ("operator", "inference")
                    want = f"The key '{name}' has no scope '{scope}', which {path} needs."
                    assert answer.message == want
                    assert answer.body["error"]["type"] == "permission_error"
            assert yard.ready("a") is not None, "the unload was refused"

    async def test_do_not_open_admin_paths_written_in_another_way(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            for path in ("/%61dmin/status", "//admin/status", "/./admin/status", "/x/../admin/status"):
                answer = await ask(yard, "GET", path, bearer(USER))
                assert answer.status in (403, 404), path


class TestClasses:
    async def test_above_the_keys_own_are_refused(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            answer = await ask(yard, "POST", CHAT, {**bearer(USER), "x-priority": "high"})
            assert (answer.status, answer.code) == (403, "forbidden")
            assert answer.message == "The key 'user' may ask for the priority 'normal' at most."
            assert yard.state.sequence == 0
            for key, priority in ((USER, "normal"), (USER, "low"), (BOTH, "high"), (BOTH, "HIGH")):
                sent = {**bearer(key), "x-priority": priority}
                assert (await ask(yard, "POST", CHAT, sent)).status == 200, sent

    async def test_that_are_unknown_are_refused(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for word in ("urgent", "2", "", "high,low"):
                for path, body in (
                    (CHAT, body_of("a", "hi", 1, False, {})),
                    ("/generate", {"model": "a", "prompt": "hi"}),
                ):
                    answer = await yard.post(path, body, **{"x-priority": word})
                    assert (answer.status, answer.code) == (400, "invalid_request"), word
                    assert answer.message == "X-Priority is low, normal or high."
                    assert answer.body["error"]["param"] == "X-Priority"
            assert yard.state.sequence == 0


class TestBrowsers:
    async def test_that_came_by_a_foreign_name_are_refused(self) -> None:
        """DNS rebinding: a page of evil.example whose name leads to this machine."""
        async with live_yard({"a": fake()}) as yard:
            for path in (CHAT, "/admin/models/a/load", "/generate"):
                for host in (
                    "evil.example",
                    "evil.example:8080",
                    "localhost.evil.example",
                    "127.0.0.1.nip.io",
                ):
                    answer = await ask(yard, "POST", path, {"host": host})
                    assert (answer.status, answer.code) == (403, "host_not_allowed"), host
                    assert "server.allowed_hosts" in answer.message
            for path in ("/", "/health", "/v1/models", "/metrics", "/docs"):
                assert (await ask(yard, "GET", path, {"host": "evil.example"})).status == 403, path
            assert yard.state.sequence == 0
            for host in ("localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LocalHost"):
                assert (await ask(yard, "GET", "/health", {"host": host})).status == 200, host

    async def test_that_show_a_foreign_page_are_refused(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for origin in (
                "https://evil.example",
                "null",
                "http://localhost:9",
                "http://localhost.evil.example",
            ):
                answer = await ask(yard, "POST", CHAT, {"origin": origin})
                assert (answer.status, answer.code) == (403, "origin_not_allowed"), origin
                assert "server.allowed_origins" in answer.message
            assert yard.state.sequence == 0
            own = {"host": "localhost:8080", "origin": "http://localhost:8080"}
            assert (await ask(yard, "POST", CHAT, own)).status == 200

    async def test_may_come_by_the_names_that_were_allowed(self) -> None:
        server = {"allowed_hosts": ["models.lan"], "allowed_origins": ["https://chat.lan"]}
        async with live_yard({"a": fake()}, server=server) as yard:
            good = {"host": "models.lan:443", "origin": "https://chat.lan"}
            assert (await ask(yard, "POST", CHAT, good)).status == 200
            assert (await ask(yard, "POST", CHAT, {**good, "host": "other.lan"})).status == 403
            assert (await ask(yard, "POST", CHAT, {**good, "origin": "http://chat.lan"})).status == 403

    async def test_with_a_key_are_still_asked_where_they_come_from(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            for extra in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
                assert (await ask(yard, "POST", CHAT, {**bearer(BOTH), **extra})).status == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "models.lan"])
async def test_a_server_beyond_loopback_without_keys_does_not_start(host: str, tmp_path: Path) -> None:
    text = f"server: {{host: '{host}', data_dir: {tmp_path}/data}}\nmodels: {{a: {{engine: fake}}}}"
    with pytest.raises(ConfigErrors) as caught:
        await compose.build(config.load(None, text))
    assert not (tmp_path / "data").exists()
    assert caught.value.path == "server.host"
    assert "beyond loopback and there are no `keys:`" in str(caught.value)


class TestPagesOfOthers:
    async def test_that_are_allowed_can_ask_first_and_read_every_answer(self) -> None:
        server = {"allowed_origins": ["https://chat.lan"]}
        async with live_yard({"a": fake()}, keys=KEYS, server=server) as yard:
            asked = await yard.http.options(
                CHAT, headers={"origin": "https://chat.lan", "access-control-request-method": "POST"}
            )
            assert asked.status_code == 204
            assert asked.headers["access-control-allow-origin"] == "https://chat.lan"
            assert "authorization" in asked.headers["access-control-allow-headers"]
            asked = await yard.http.options(
                CHAT,
                headers={
                    "origin": "https://chat.lan",
                    "access-control-request-method": "POST",
                    "access-control-request-headers": "authorization,x-stainless-os",
                },
            )
            assert asked.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
            refused = await ask(yard, "POST", CHAT, {"origin": "https://chat.lan"})
            served = await ask(yard, "POST", CHAT, {"origin": "https://chat.lan", **bearer(USER)})
            assert (refused.status, served.status) == (401, 200)
            for answer in (refused, served):
                assert answer.headers["access-control-allow-origin"] == "https://chat.lan"
                assert answer.headers["vary"] == "origin"

    async def test_that_are_not_allowed_are_told_so_when_they_ask_first(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            asked = await yard.http.options(
                CHAT, headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
            )
            assert asked.status_code == 403
            assert "access-control-allow-origin" not in asked.headers


class TestNamesThatAreNone:
    async def test_are_refused_like_foreign_ones(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            assert (await ask(yard, "POST", CHAT, {"host": "[x"})).code == "host_not_allowed"
            assert (await ask(yard, "POST", CHAT, {"origin": "http://["})).code == "origin_not_allowed"
