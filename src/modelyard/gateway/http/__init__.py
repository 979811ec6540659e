"""Our own HTTP/1.1 server: exchanges for the inference lanes, ASGI for the control surface.

See docs/decisions/0001-own-http-server.md for the reason that it is our own.
"""

from modelyard.gateway.http.limits import Limits
from modelyard.gateway.http.server import Server

__all__ = ["Limits", "Server"]
