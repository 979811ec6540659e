"""Hooks of schemathesis for `test_openapi`: most of what is asked means something, so more comes of it."""

from __future__ import annotations

from itertools import count
from typing import Any

import schemathesis

_numbers = count()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    number, path = next(_numbers), case.operation.path
    if number % 4 == 0:
        return
    name, version = f"m{number % 5}", number % 3 + 1
    made = {"engine": "fake", "slots": version, "parameters": {"memory": {"accelerator": 1_000_000}}}
    if path.startswith("/v1/models/{name}"):
        case.path_parameters["name"] = name
        if case.headers is not None and number % 4 == 1:
            case.headers.pop("If-Match", None)
    if path in ("/v1/keys/{name}", "/v1/engines/{name}"):
        case.path_parameters["name"] = f"k{number % 3}"
    if case.method == "POST" and path == "/v1/keys":
        case.body = {"name": f"k{number % 3}"}
    elif case.method == "PUT" and path == "/v1/engines/{name}":
        case.body = {"type": "fake", "defaults": {"seed": number % 3}}
        if case.headers is not None:
            case.headers.pop("If-Match", None)
    elif case.method == "POST" and path == "/v1/models":
        case.body = {"name": name, **made}
    elif case.method == "POST" and path.endswith("/versions"):
        case.body = made
    elif case.method == "POST" and path.endswith("/promote"):
        case.body = {"version": version}
    elif case.method == "PUT" and path.endswith("/tags/{tag}"):
        case.path_parameters["tag"] = "best"
        case.body = {"version": version}
