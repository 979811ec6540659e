"""A server of the tests that sends whatever bytes it is told to, HTTP or not."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[str], Iterable[bytes]]


@contextmanager
def raw_server(answer: Answer) -> Iterator[str]:
    """The URL of one that sends what `answer` makes of a request's path, and then closes the connection."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = self.rfile.readline().decode("latin-1").split(" ")[1:2]
            while self.rfile.readline().strip():
                pass
            with suppress(OSError):  # nobody wants the rest
                for part in answer(path[0]) if path else ():
                    self.wfile.write(part)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(10)
