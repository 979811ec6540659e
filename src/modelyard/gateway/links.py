"""Links of the OpenAPI document: what an answer names is what other paths take.

Called by `reference`.
"""

from __future__ import annotations

from typing import Any

_ID = "$response.body#/id"
_NAMED = (  # the path, the status and the field of what names it; the paths that take it, and as what
    (("/v1/models", "post", "201"), "/v1/models/{name}", "name"),
    *(
        ((f"/v1/models/{{name}}{verb}", method, "202"), "/v1/tasks/{task}", "task")
        for verb, method in (("/promote", "post"), ("/rollback", "post"), ("", "delete"))
    ),
    (("/v1/cache/prefetch", "post", "202"), "/v1/tasks/{task}", "task"),
)


def add_links(paths: dict[str, Any]) -> None:
    """Say that a model that was registered is the `name` of further paths, and a task their `task`."""
    for (path, method, status), below, parameter in _NAMED:
        if path not in paths:
            continue
        links = paths[path][method]["responses"][status].setdefault("links", {})
        for other, operations in paths.items():
            if not other.startswith(below):
                continue
            for operation in operations.values():
                name = operation["operationId"]
                links[name] = {"operationId": name, "parameters": {f"path.{parameter}": _ID}}
