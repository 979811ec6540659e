"""A plain HTTP client of a Modelyard server: text, models, and the control surface.

For programs (`from modelyard import Client`), the command line and the embedded instance. Knows the paths
and the error shape, and nothing else of the package. For chat, tools and everything else of OpenAI's API
use OpenAI's own client with `base_url=URL + "/v1"`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload
from urllib.parse import quote, urlencode

import httpx

from modelyard.errors import InvalidRequest, ServerUnreachable, error_of

Json = dict[str, Any]

UNIX = "unix:"
NO_CONTENT = 204
CONNECT_TIMEOUT = 5.0
# A log may be silent for long: the system finds out, within 60 s, that nobody is there any more.
KEPT_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, option), value)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, option)
    ),
]
QUIET_STREAM = 60.0  # seconds without a byte, heartbeats included, after which an event stream is dead


class Client:
    """One server. Safe to use from several threads.

    `url` is `http://HOST:PORT`, `https://…` or `unix:/path/of/socket`. `timeout` is the longest silence while
    an answer is awaited, in seconds; it has to cover the wait for a slot and the load of a model. Every
    method raises the errors of `modelyard.errors`, with ServerUnreachable when there was no answer.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout: float = 960.0) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=256)
        if url.startswith(UNIX):
            path = url.removeprefix(UNIX).removeprefix("//")
            base, transport = "http://localhost", httpx.HTTPTransport(uds=path, limits=limits)
        else:
            base, transport = self.url, httpx.HTTPTransport(limits=limits, socket_options=KEPT_ALIVE)
        try:
            self._http = httpx.Client(
                base_url=base,
                headers=headers,
                transport=transport,
                timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
                trust_env=False,
            )
        except httpx.InvalidURL:
            base = ""
        if not base.startswith(("http://", "https://")):
            raise InvalidRequest(f"{url!r} is no address of a server; write http://HOST:PORT or unix:/PATH")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; every call raises ServerUnreachable from then on. Idempotent."""
        self._http.close()

    def _open(self) -> httpx.Client:
        if self._http.is_closed:
            raise ServerUnreachable("this client was closed; make a new one")
        return self._http

    # -- text ---------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, model: str, prompt: str, *, max_tokens: int = 256, stream: Literal[False] = False, **more: Any
    ) -> str: ...

    @overload
    def generate(
        self, model: str, prompt: str, *, max_tokens: int = 256, stream: Literal[True], **more: Any
    ) -> Iterator[str]: ...

    def generate(
        self, model: str, prompt: str, *, max_tokens: int = 256, stream: bool = False, **more: Any
    ) -> str | Iterator[str]:
        """Continue a prompt with at most `max_tokens` tokens: the text, or its pieces as they come.

        `more` goes to the engine as it is (`temperature`, `stop`, `seed`, …).
        """
        body: Json = {"model": model, "prompt": prompt, "max_tokens": max_tokens, **more}
        if stream:
            events = self.stream("POST", "/generate", {**body, "stream": True})
            return (text for event in events if (text := str(event.get("text", ""))))
        return str(self.call("POST", "/generate", body)["text"])

    # -- models -------------------------------------------------------------------------------------------

    def models(self, **filters: str | int) -> list[Json]:
        """The models, in OpenAI's shape with ours under `modelyard`: all of them, or those that fit `name` (a
        part), `capability`, `pair` (`en-de`) and `state`; `limit` of them behind `after`, by name."""
        query = f"?{urlencode(filters)}" if filters else ""
        return list(self.call("GET", f"/v1/models{query}")["data"])

    def model(self, name: str) -> Json:
        """One model, with its policy and, when it is registered, its spec."""
        return self._object("GET", _model(name))

    def load(self, model: str, *, wait: bool = True, evict: bool = True) -> Json:
        """Have an instance of a model ready. `evict` False: only in memory that is free, or on its way
        back."""
        return self._object("POST", f"/admin/models/{_path(model)}/load", {"wait": wait, "evict": evict})

    def unload(self, model: str, *, now: bool = False, wait: bool = True) -> Json:
        """Let the instances of a model finish (`now`: cut them) and stop them."""
        return self._object("POST", f"/admin/models/{_path(model)}/unload", {"now": now, "wait": wait})

    def fence(self, device: str, reason: str = "by order", *, now: bool = False) -> Json:
        """Place nothing on a device any more; who is there finishes (`now`: is cut) and leaves."""
        return self._object("POST", f"/admin/devices/{_path(device)}/fence", {"reason": reason, "now": now})

    def unfence(self, device: str) -> Json:
        """Use a fenced device again."""
        return self._object("POST", f"/admin/devices/{_path(device)}/unfence")

    # -- the registry -------------------------------------------------------------------------------------

    def register(self, name: str | None = None, /, description: str = "", **fields: Any) -> Json:
        """Register a model, which is served from now on: `fields` are those of an entry under `models:`, or
        just a `source`. Returns it. Raises NameTaken, SpecRefused, SourceUnreachable."""
        return self._object("POST", "/v1/models", {"name": name, "description": description, **fields})

    def policies(self, model: str, *, limit: int = 100) -> list[Json]:
        """The last policies that a registered model has had, the newest first; that one holds."""
        return list(self.call("GET", _model(model, f"/policies?limit={limit}"))["data"])

    def version(self, model: str, number: int) -> Json:
        """A version of a registered model, with its files (`artifacts`)."""
        return self._object("GET", _model(model, f"/versions/{number}"))

    def versions(self, model: str) -> list[Json]:
        """The versions of a registered model, the oldest first."""
        return list(self.call("GET", _model(model, "/versions"))["data"])

    def add_version(self, model: str, **fields: Any) -> Json:
        """Another version, not the current one yet; the one that it has of these fields, if it has one."""
        return self._object("POST", _model(model, "/versions"), fields)

    def compare(self, model: str, one: int, other: int) -> Json:
        """What differs between two versions."""
        return self._object("GET", _model(model, f"/compare?from={one}&to={other}"))

    def set_policy(self, model: str, /, *, revision: int | None = None, **changes: Any) -> Json:
        """Change the policy, the `aliases` or the `description` of a registered model. Raises
        RevisionMismatch when `revision` is given and it has another by now."""
        headers = {} if revision is None else {"if-match": f'"{revision}"'}
        return dict(self.call("PATCH", _model(model), changes, headers))

    def promote(self, model: str, version: int, *, swap: bool = False) -> Json:
        """Have a version become the current one: the task that does it, to `follow`."""
        return self._object("POST", _model(model, "/promote"), {"version": version, "swap": swap})

    def rollback(self, model: str, version: int | None = None, *, swap: bool = False) -> Json:
        """Have the version before become the current one again: the task, to `follow`."""
        return self._object("POST", _model(model, "/rollback"), {"version": version, "swap": swap})

    def tag(self, model: str, tag: str, version: int | None) -> Json:
        """Have a tag name a version; None: take it away."""
        path = _model(model, f"/tags/{quote(tag, safe='')}")
        return (
            self._object("DELETE", path)
            if version is None
            else self._object("PUT", path, {"version": version})
        )

    def remove(self, model: str, *, force: bool = False) -> Json | None:
        """Remove a registered model (`force`: with its aliases). None when it is gone, else the task that
        waits for what runs on it."""
        found = self.call("DELETE", _model(model, "?force=true" if force else ""))
        return None if found is None else dict(found)

    def predict(self, model: str, **body: Any) -> Json:
        """An answer of a model, or of a version (`name@2`, `name:tag`): the body of its own endpoint."""
        return self._object("POST", _model(model, "/predict"), body)

    def prefetch(self, *models: str) -> Json:
        """Have the files of these models fetched: the task, to `follow`."""
        return self._object("POST", "/v1/cache/prefetch", {"models": list(models)})

    def tasks(self) -> list[Json]:
        """Long work that runs, and the last that ended."""
        return list(self.call("GET", "/v1/tasks")["data"])

    def task(self, name: str) -> Json:
        """One task."""
        return self._object("GET", f"/v1/tasks/{quote(name, safe='')}")

    def cancel(self, task: str) -> Json:
        """Have a task end."""
        return self._object("POST", f"/v1/tasks/{quote(task, safe='')}/cancel")

    def follow(self, task: Json) -> Iterator[Json]:
        """A task as it is, and at each change, until it has ended. Raises the error that it failed with, and
        ServerUnreachable when the server stops telling before that."""
        path = f"/v1/tasks/{quote(task['id'], safe='')}"
        headers = {"accept": "text/event-stream"}
        for now in self.stream("GET", path, timeout=QUIET_STREAM, headers=headers):
            yield (task := now)
        if task["state"] == "running":
            message = f"{task['kind']} {task['subject']} has not ended; ask for {path} again"
            raise ServerUnreachable(f"{self.url} stopped telling: {message}")

    # -- the control surface ------------------------------------------------------------------------------

    def ps(self) -> Json:
        """Everything in one answer: devices, models, instances, queues, fetches and the last events."""
        return self._object("GET", "/admin/status")

    def devices(self) -> list[Json]:
        """The account of each device, with the processes of its instances."""
        return list(self.call("GET", "/admin/devices"))

    def instances(self) -> list[Json]:
        """Every instance that holds memory."""
        return list(self.call("GET", "/admin/instances"))

    def drain(self, instance: str) -> Json:
        """Let one instance finish and stop it; does not wait for it."""
        return self._object("POST", f"/admin/instances/{_path(instance)}/drain")

    def usage(self, *by: str, **wanted: Any) -> list[Json]:
        """What was used, told apart `by` model, version, key, hour; `wanted` may be since, until (seconds
        since 1970), model and key."""
        rows: list[Json] = []
        while True:
            place = {"limit": 999, "offset": len(rows)}
            query = urlencode([*(("by", one) for one in by), *{**wanted, **place}.items()])
            page = self._object("GET", f"/v1/usage?{query}")
            rows += page["data"]
            if not page["has_more"]:
                return rows

    def logs(self, instance: str, *, lines: int = 100) -> str:
        """The last lines of an instance's output."""
        with _translated(self.url):
            response = self._open().get(f"/admin/instances/{_path(instance)}/logs?lines={lines}")
        _check(response, self.url)
        return response.text

    def follow_logs(self, instance: str, *, lines: int = 100) -> Iterator[str]:
        """The last lines of its output, then what it writes, until it is gone. May be silent for long,
        and ends with ServerUnreachable within a minute after the server can no longer be reached."""
        path = f"/admin/instances/{_path(instance)}/logs?lines={lines}&follow=true"
        with _translated(self.url), self._open().stream("GET", path, timeout=None) as response:
            _check(response, self.url)
            yield from response.iter_text()

    def events(self, last: int = 50) -> Iterator[Json]:
        """The last events, then each new one, until the server stops."""
        return self.stream("GET", f"/admin/events?last={last}", timeout=QUIET_STREAM)

    def explain(self, name: str) -> Json:
        """What the journal tells of a request (its id stands in `x-modelyard-request`) or of a model."""
        return self._object("GET", f"/admin/explain/{_path(name)}")

    def apply(self, path: str | PathLike[str] | None = None, *, dry_run: bool = False) -> Json:
        """Have another configuration served, without a restart, or say what that would change. `path` is a
        file on the server's machine; None: the one that is served is read again. Raises ConfigRefused
        (RestartNeeded) with all that is wrong; then nothing has changed."""
        order = {"path": _absolute(path), "dry_run": dry_run}
        return self._object("POST", "/admin/config", order)

    def plan(self, action: Literal["load", "unload", "request"], model: str, **options: Any) -> Json:
        """What a load, an unload or a request of a model would do now; nothing is changed. `options`: `evict`
        of a load, `now` of an unload, `priority` and `max_wait` of a request."""
        return self._object("POST", "/admin/plan", {action: {"model": model, **options}})

    def plan_config(self, path: str | PathLike[str] | None = None) -> Json:
        """What serving another configuration would do to instances; nothing is changed. `path` as in
        `apply`."""
        return self._object("POST", "/admin/plan", {"config": {"path": _absolute(path)}})

    def apply_plan(self, plan: str, *, wait: bool = True) -> Json:
        """Carry out the plan with this id, exactly. Raises PlanStale, with what has changed, when it does not
        hold any more; nothing is done then."""
        return self._object("POST", "/admin/apply-plan", {"id": plan, "wait": wait})

    # -- what these are made of ---------------------------------------------------------------------------

    def call(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """One request; the JSON of its answer, None where it has no body."""
        with _translated(self.url):
            response = self._open().request(method, path, json=body, headers=headers)
        _check(response, self.url)
        if response.status_code == NO_CONTENT:
            return None
        try:
            return response.json()
        except ValueError:
            raise _foreign(self.url, response.status_code) from None

    def stream(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Json]:
        """One request whose answer is server-sent events: the JSON of each. An error event is raised."""
        limit = self._http.timeout if timeout is None else httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)
        with (
            _translated(self.url),
            self._open().stream(method, path, json=body, timeout=limit, headers=headers) as response,
        ):
            _check(response, self.url)
            for line in response.iter_lines():
                field, _, data = line.partition(":")
                if field != "data" or data.strip() == "[DONE]":
                    continue
                try:
                    event = json.loads(data)
                except ValueError:
                    raise _foreign(self.url, response.status_code) from None
                if isinstance(event, dict) and "error" in event:
                    raise error_of(event, response.status_code)
                yield event

    def _object(self, method: str, path: str, body: Json | None = None) -> Json:
        return dict(self.call(method, path, body))


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turns what the transport raises into ServerUnreachable, and a number that JSON has not (NaN) into
    InvalidRequest."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServerUnreachable(
            f"no server answers at {url}; start one with `modelyard serve`, or name another with --url"
        ) from error
    except httpx.TimeoutException as error:
        raise ServerUnreachable(f"{url} was silent for too long") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnreachable(f"the connection to {url} broke: {error}") from error
    except ValueError as error:
        raise InvalidRequest(f"the request cannot be sent: {error}") from error


def _absolute(path: str | PathLike[str] | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _model(name: str, more: str = "") -> str:
    """The path of a model; `more` goes on behind its name."""
    return f"/v1/models/{quote(name, safe=':@')}{more}"


def _path(name: str) -> str:
    return quote(name, safe="/:@")


def _check(response: httpx.Response, url: str) -> None:
    """Raise the error that an answer stands for, if it stands for one."""
    if response.is_success:
        return
    response.read()
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "error" not in answer:
        raise _foreign(url, response.status_code)
    raise error_of(answer, response.status_code)


def _foreign(url: str, status: int) -> ServerUnreachable:
    return ServerUnreachable(f"what answers at {url} (status {status}) is not a Modelyard server")
