"""Names of models in paths. A path is split before it is decoded: `/v1/models/a%2Fversions` is the model
`a/versions`, `/v1/models/a/versions` are the versions of `a`.

Used by the routes below /v1/models.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import Depends, Path, Request
from starlette.convertors import Convertor, register_url_convertor

from modelyard.errors import MethodNotAllowed

MODELS = "/v1/models"
_BELOW = f"{MODELS}/".encode()
VERBS = {  # the last part of a path, and the methods that it takes
    "versions": "GET, POST",
    "policies": "GET",
    "compare": "GET",
    "promote": "POST",
    "rollback": "POST",
    "predict": "POST",
    "quantize": "POST",
}
TAGS = "tags"


class _Number(Convertor[int]):
    """`{x:number}`: a number of a version; Starlette's `int` fails on one with thousands of digits."""

    regex = "[0-9]{1,10}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]


class AsSent:
    """Middleware: paths below /v1/models lead to their routes as they were sent."""

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        raw = scope.get("raw_path", b"")
        if raw.startswith(_BELOW):
            scope = {**scope, "path": raw.decode("ascii")}
        await self._app(scope, receive, send)


def asked(raw: bytes) -> str | None:
    """The model of a path as it was sent, when that is one of `predict`."""
    before, _, verb = raw.rpartition(b"/")
    if not before.startswith(_BELOW) or verb != b"predict":
        return None
    return unquote(before.removeprefix(_BELOW).decode("ascii"))


def location(name: str, verb: str = "") -> str:
    """The path of a model; any name comes back from it."""
    return f"{MODELS}/{quote(name, safe=':@')}{verb}"


_Name = Annotated[
    str,
    Path(
        description="A model's name or alias, `name@version` or `name:tag`. It may hold `/`; where its end "
        "reads as `/versions`, `/tags/x` or another path here, that `/` is written `%2F`."
    ),
]


def _decoded(name: _Name) -> str:
    return unquote(name)


def reserved(path: str) -> str:
    """The methods of a path below /v1/models that goes on behind its name; empty for one that does not."""
    *before, last = path.removeprefix(f"{MODELS}/").split("/")
    if len(before) > 1 and before[-1] == TAGS:
        return "DELETE, PUT"
    if len(before) > 1 and before[-1] == "versions" and re.fullmatch(_Number.regex, last):
        return "GET"
    return VERBS.get(last, "") if before else ""


def _alone(request: Request, name: _Name) -> str:
    """Raises MethodNotAllowed for a path that has another meaning, with another method."""
    if allowed := reserved(name):
        raise MethodNotAllowed(
            f"{request.method} {request.url.path} is not possible; this path takes {allowed}. "
            "(If it is a name, write its last `/` as `%2F`.)",
            allowed=allowed,
        )
    return unquote(name)


NameBefore = Annotated[str, Depends(_decoded)]
"""The name in a path that goes on behind it."""
NameAlone = Annotated[str, Depends(_alone)]
"""The name that is the rest of its path."""
