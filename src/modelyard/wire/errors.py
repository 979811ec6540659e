"""How an exchange with an engine fails, seen from the wire. Raised by this package alone.

The relay turns these into outcomes and into the taxonomy of `modelyard.errors`; a client never sees them.
"""

from __future__ import annotations


class WireError(Exception):
    """An exchange with an engine failed."""


class ConnectFailed(WireError):
    """No connection could be made; nothing of the request was sent."""


class NotTrusted(ConnectFailed):
    """The server's certificate is not that of its name, or none that we trust: trying again will not help."""


class Broken(WireError):
    """The connection died before the answer was whole.

    `answered` is True when any byte of the answer had come: only then may the engine have told something.
    """

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class ProtocolError(WireError):
    """The engine broke HTTP or SSE framing, or passed a bound; its connection is closed."""
