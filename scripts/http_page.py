"""The reference of every HTTP endpoint as Markdown, from the OpenAPI document that a server shows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from modelyard.gateway.admin import admin_router
from modelyard.gateway.app import registry_router
from modelyard.gateway.cache import cache_router
from modelyard.gateway.listing import listing_router
from modelyard.gateway.reference import EVERYWHERE, document
from tables import NOTICE, code, default_of, own_docstring, table, type_of


def http_page() -> str:
    """Every endpoint with what it takes, answers and refuses, from the OpenAPI document."""
    nothing: Any = None  # the routes are described, not called
    routers = (
        listing_router(*[nothing] * 3),
        registry_router(*[nothing] * 5),
        cache_router(*[nothing] * 2),
        admin_router(*[nothing] * 6),
    )
    found = document(routers, keys=True)
    shapes = found["components"]["schemas"]
    overview, sections, bodies = [], dict[str, str](), set()
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper()} {path}"
            (group,) = operation["tags"]
            overview.append([f"[`{name}`](#{_anchor(name)})", _scope(operation), operation["description"]])
            sections.setdefault(group, f"## {group.capitalize()}\n\n")
            sections[group] += _endpoint(name, operation, shapes)
            bodies.add(_body_of(operation))
    answers = "".join(_shape(name, shape) for name, shape in sorted(shapes.items()) if name not in bodies)
    everywhere = [[str(error.status), code(error.code), own_docstring(error)] for error in EVERYWHERE]
    page = f"""{NOTICE}
# HTTP endpoints

The scope is what a key needs (`Authorization: Bearer KEY` or `x-api-key: KEY`); without `keys` in the
configuration nothing asks for one. A server shows the same at `/docs`, and as OpenAPI at `/openapi.json`;
these two and the status page at `/` need no key.

{table(["endpoint", "scope", "meaning"], overview)}
{"".join(sections.values())}## Errors of every path

Beside what an endpoint itself refuses. Framing that is not understood closes the connection as well: 400, 414
(`uri_too_long`), 417 (`expectation_failed`), 431. [Every code](errors.md) with its meaning.

{table(["status", "code", "meaning"], everywhere)}
## Shapes

{answers}"""
    return page.rstrip() + "\n"


def _anchor(heading: str) -> str:
    """The anchor that Markdown gives to a heading."""
    kept = (letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
    return "".join(kept).replace(" ", "-")


def _scope(operation: Mapping[str, Any]) -> str:
    if not operation["security"]:
        return "open"
    (scopes,) = operation["security"][0].values()
    return ", ".join(map(code, scopes)) or "any key"


def _endpoint(name: str, operation: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    """The section of one endpoint."""
    takes = [
        [code(one["name"]), one["in"], *_typed(one["schema"], required=one["required"])]
        for one in operation.get("parameters", [])
    ]
    takes += [[field, "body", *rest] for field, *rest in _fields(shapes.get(_body_of(operation), {}))]
    answers, refused, headers = [], [], []
    for status, answer in operation["responses"].items():
        if "x-codes" in answer:
            refused.append([status, ", ".join(map(code, answer["x-codes"]))])
        elif status != "default":
            meaning = answer["description"].replace("Successful Response", "")
            answers.append([status, _contents(answer), meaning])
        headers += [[code(key), value["description"]] for key, value in answer.get("headers", {}).items()]
    parts = [
        f"### `{name}`\n\n{operation['description']}\n\nScope: {_scope(operation)}.\n",
        table(["takes", "in", "type", "default", "meaning"], takes) if takes else "",
        table(["answers", "with", "meaning"], answers),
        table(["header of the answer", "meaning"], headers) if headers else "",
        table(["refuses", "with"], refused) if refused else "",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _body_of(operation: Mapping[str, Any]) -> str:
    """The name of the shape of an operation's JSON body, also where the body may be left out."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    named = [one["$ref"] for one in (body, *body.get("anyOf", [])) if "$ref" in one]
    return str(named[0]).rpartition("/")[2] if named else ""


def _contents(answer: Mapping[str, Any]) -> str:
    """The media types of an answer, with the shape of each."""
    found = []
    for media, content in answer.get("content", {}).items():
        known = type_of(content["schema"]) if content.get("schema") else ""
        title = content.get("schema", {}).get("title", "")
        shown = f"[{title}](#{title.lower()})" if known == "object" and title else known
        found.append(f"{shown} (`{media}`)" if shown and shown != "string" else code(media))
    return ", or ".join(found)


def _fields(shape: Mapping[str, Any]) -> list[list[str]]:
    required = shape.get("required", [])
    return [
        [code(name), *_typed(field, required=name in required)]
        for name, field in shape.get("properties", {}).items()
    ]


def _typed(field: Mapping[str, Any], *, required: bool) -> list[str]:
    """Type, default and meaning of a field."""
    return [type_of(field), "required" if required else default_of(field), field.get("description", "")]


def _shape(name: str, shape: Mapping[str, Any]) -> str:
    parts = [f"### {name.removesuffix('Section')}", inspect.cleandoc(shape.get("description", ""))]
    if "enum" in shape:
        parts.append(f"One of {type_of(shape)}.")
    elif "properties" in shape:
        parts.append(table(["field", "type", "default", "meaning"], _fields(shape)).rstrip())
    return "\n\n".join(part for part in parts if part) + "\n\n"
