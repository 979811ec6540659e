"""Servers that speak OpenAI's API, seen by adapters: how they are asked to generate.

Pure; it never asks anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence

from modelyard.core.types import Spec
from modelyard.engines.base import Call

CHAT = "/v1/chat/completions"
APIS: Mapping[str, str] = {
    "chat": CHAT,
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
    "rerank": "/v1/rerank",
}
"""What a server can be said to serve, each with its path."""
_FEWEST = 16  # tokens that an answer of OpenAI's responses may be limited to


def post(path: str, body: Mapping[str, object], name: str = "") -> Call:
    """A request with a JSON body."""
    return Call("POST", path, json.dumps(body).encode(), name)


def warm_up(spec: Spec, paths: Collection[str]) -> Sequence[Call]:
    """The calls of `Engine.warm_up` on a server that answers `paths` and keeps beginnings of prompts by
    itself: `prefixes` are sent once each, as system messages."""
    calls = [*prompts(spec, paths)] or [post(*_generation(spec, paths, "Hello"))]
    for number, prefix in enumerate(spec.warm_up.prefixes):
        messages = [{"role": "system", "content": prefix}, {"role": "user", "content": "Hello"}]
        body = {"model": spec.model, "messages": messages, "max_tokens": 1}
        calls.append(post(CHAT, body, name=f"warm_up.prefixes[{number}]"))
    return tuple(calls)


def warm_up_problems(spec: Spec, paths: Collection[str]) -> list[tuple[str, str]]:
    """What of a spec's warm-up such a server cannot do, as `Engine.problems` says it."""
    if spec.warm_up.prefixes and CHAT not in paths:
        return [("warm_up.prefixes", "are system messages, and this model does not chat; leave them out")]
    return []


def prompts(spec: Spec, paths: Collection[str]) -> Iterator[Call]:
    """A generation of each prompt of the spec's warm-up."""
    for number, prompt in enumerate(spec.warm_up.prompts):
        yield post(*_generation(spec, paths, prompt), name=f"warm_up.prompts[{number}]")


def _generation(spec: Spec, paths: Collection[str], prompt: str) -> tuple[str, dict[str, object]]:
    """A request that takes this prompt, to the first of the APIs that has one."""
    bodies: dict[str, dict[str, object]] = {
        CHAT: {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1},
        "/v1/completions": {"prompt": prompt, "max_tokens": 1},
        "/v1/responses": {"input": prompt, "max_output_tokens": _FEWEST},
        "/v1/messages": {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1},
        "/v1/embeddings": {"input": prompt},
        "/v1/rerank": {"query": prompt, "documents": [prompt]},
        "/tokenize": {"content": prompt},
    }
    path = next(path for path in bodies if path in paths)
    return path, {"model": spec.model, **bodies[path]}
