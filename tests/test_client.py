"""What our own client makes of what is sent to it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from modelyard.client import Client
from modelyard.errors import EngineDied, EngineFailed, InvalidRequest, ModelyardError, ServerUnreachable


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[Client]:
    """The client of a server that has one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{server.server_address[1]}") as client:
                yield client
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "m", "type": "server_error"}, EngineFailed),
        ({"message": "m", "code": 500}, EngineFailed),
        ({"message": "m", "code": "their_own"}, EngineFailed),
        ({"message": "m", "code": 400}, InvalidRequest),
        ({"message": "m", "code": "engine_died"}, EngineDied),
        ("m", EngineFailed),
    ],
)
def test_an_error_in_the_middle_of_a_stream(error: object, kind: type[ModelyardError]) -> None:
    events = b'data: {"text": "a"}\n\ndata: ' + json.dumps({"error": error}).encode() + b"\n\n"
    with answering(events) as client:
        pieces = client.generate("x", "hi", stream=True)
        assert next(pieces) == "a"
        with pytest.raises(ModelyardError) as caught:
            next(pieces)
    assert (type(caught.value), caught.value.message) == (kind, "m")


@pytest.mark.parametrize("stream", [False, True])
def test_a_number_that_json_has_not_is_the_callers_mistake(stream: bool) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidRequest, match="not JSON"):
        list(client.generate("x", "hi", stream=stream, temperature=float("nan")))  # type: ignore[call-overload]


@pytest.mark.parametrize(("status", "kind"), [(422, InvalidRequest), (500, EngineFailed)])
def test_an_engines_own_answer_is_told_by_its_status(status: int, kind: type[ModelyardError]) -> None:
    body = b'{"error": {"message": "m", "code": "their_own"}}'
    with answering(body, status) as client, pytest.raises(ModelyardError) as caught:
        client.generate("x", "hi")
    assert (type(caught.value), caught.value.message) == (kind, "m")


def test_the_system_looks_whether_the_server_of_a_silent_stream_is_there() -> None:
    with answering(b"") as client, client._http.stream("GET", "/") as response:
        connection = response.extensions["network_stream"].get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_task_whose_server_stops_telling_has_not_ended() -> None:
    task = {"id": "t1-1", "kind": "promote", "subject": "b@2", "state": "running"}
    with answering(f"event: progress\ndata: {json.dumps(task)}\n\n".encode()) as client:
        followed = client.follow(task)
        assert next(followed) == task
        with pytest.raises(ServerUnreachable, match="promote b@2 has not ended; ask for /v1/tasks/t1-1"):
            next(followed)
