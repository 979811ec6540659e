"""The server that the adapter runs: OpenAI's chat completions on a Unix socket, whole and as a stream."""

from __future__ import annotations

import json
import socketserver
import sys
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """One connection. The model's name and how often it repeats are set by `main`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = False  # the socket is no TCP one
    model = ""
    times = 1

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            self._answer(404, {"error": {"message": f"there is no {self.path}"}})
            return
        asked = str(body["messages"][-1]["content"]).split()
        words = (asked * self.times)[: body.get("max_tokens") or None]
        usage = {
            "prompt_tokens": len(asked),
            "completion_tokens": len(words),
            "total_tokens": len(asked) + len(words),
        }
        text = " ".join(words)
        if body.get("stream"):
            self._stream(self._chunks(words, usage))
        else:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer(200, {**self._head("chat.completion"), "choices": [choice], "usage": usage})

    def _chunks(self, words: list[str], usage: dict[str, int]) -> Iterator[str]:
        head = self._head("chat.completion.chunk")
        for number, word in enumerate(words):
            delta = {"content": f" {word}" if number else word}
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            yield json.dumps({**head, "choices": [choice]})
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield json.dumps({**head, "choices": [choice], "usage": usage})
        yield "[DONE]"

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"chatcmpl-{uuid.uuid4().hex}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self.model}

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: Iterator[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def address_string(self) -> str:
        return "client"  # a Unix socket's has no address


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def main(path: str, model: str, times: str) -> None:
    Handler.model, Handler.times = model, int(times)
    with Server(path, Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
