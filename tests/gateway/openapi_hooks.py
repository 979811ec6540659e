"""Hooks of schemathesis for `test_openapi`: what is registered is mostly right, to be asked for more."""

from __future__ import annotations

from itertools import count
from typing import Any

import schemathesis

_numbers = count()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    number = next(_numbers)
    made = {"engine": "fake", "slots": number % 3 + 1, "parameters": {"memory": {"accelerator": 1_000_000}}}
    if case.method != "POST" or number % 4 == 0:
        return
    if case.operation.path == "/v1/models":
        case.body = {"name": f"m{number % 9}", **made}
    elif case.operation.path == "/v1/models/{name}/versions":
        case.body = made
