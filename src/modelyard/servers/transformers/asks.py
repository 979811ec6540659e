"""What requests ask for: their bodies read and checked, in OpenAI's terms. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# What would change the answer and is not done here: a field, and the values with which it asks for nothing.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
_MOST_INPUTS = 2048  # as at OpenAI


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(self, status: int, kind: str, message: str, **fields: object) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "code": status, **fields}}


def invalid(message: str, param: str) -> ApiError:
    return ApiError(400, "invalid_request_error", message, param=param)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in. The same
    `seed` chooses the same tokens where the scores are the same."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Ask:
    """One generation. `limit` is None where the request has none; `prompt` is a text or tokens, of a chat the
    messages."""

    prompt: str | Sequence[int] | Sequence[Mapping[str, object]]
    chat: bool
    limit: int | None
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    ignore_end: bool = False
    template: Mapping[str, object] = field(default_factory=dict)


def body_of(data: bytes) -> Mapping[str, object]:
    """A request's body. Raises ApiError."""
    try:
        body = json.loads(data)
    except ValueError as error:
        raise ApiError(400, "invalid_request_error", f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_request_error", "the body must be an object")
    return body


def generation(body: Mapping[str, object], chat: bool, defaults: Sampling) -> Ask:
    """A chat or a completion; `defaults` are the model's own. Raises ApiError."""
    for name, nothing in _UNSUPPORTED.items():
        if body.get(name) is not None and body[name] not in nothing:
            raise invalid(f"`{name}` is not supported by this server", name)
    options = body.get("stream_options")
    template = body.get("chat_template_kwargs") or {}
    if not isinstance(template, dict):
        raise invalid("`chat_template_kwargs` must be an object", "chat_template_kwargs")
    return Ask(
        prompt=_messages(body) if chat else prompt(body, "prompt"),
        chat=chat,
        limit=_limit(body, chat),
        sampling=_sampling(body, defaults),
        stops=_stops(body),
        stream=body.get("stream") is True,
        usage=isinstance(options, dict) and options.get("include_usage") is True,
        ignore_end=body.get("ignore_eos") is True,
        template=template,
    )


def prompt(body: Mapping[str, object], name: str) -> str | list[int]:
    """One text, or one list of tokens. Raises ApiError."""
    value = body.get(name)
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], int):
        value = value[0]
    if isinstance(value, str) or _are_tokens(value):
        return value  # type: ignore[return-value]
    raise invalid(f"`{name}` must be one text, or a list of tokens", name)


def inputs(body: Mapping[str, object]) -> list[str | list[int]]:
    """What an embeddings request embeds. Raises ApiError."""
    value = body.get("input")
    if isinstance(value, str) or _are_tokens(value):
        return [value]  # type: ignore[list-item]
    if isinstance(value, list) and len(value) > _MOST_INPUTS:
        raise invalid(f"`input` holds {len(value)} inputs, and may hold {_MOST_INPUTS}", "input")
    if isinstance(value, list) and value and all(isinstance(one, str) or _are_tokens(one) for one in value):
        return value
    raise invalid("`input` must be a text, a list of texts, or a list of lists of tokens", "input")


def checked(tokens: Sequence[int], context: int, vocabulary: int) -> Sequence[int]:
    """The tokens, when there are some, the model has all of them, and they leave room for one more. Raises
    ApiError."""
    if not tokens:
        raise ApiError(400, "invalid_request_error", "there is nothing to read: the prompt has no tokens")
    if max(tokens) >= vocabulary:
        message = f"the model has no token {max(tokens)}: they end at {vocabulary - 1}"
        raise ApiError(400, "invalid_request_error", message)
    if len(tokens) < context:
        return tokens
    message = f"request ({len(tokens)} tokens) exceeds the available context size ({context})"
    counts = {"n_prompt_tokens": len(tokens), "n_ctx": context}
    raise ApiError(400, "exceed_context_size_error", message, **counts)


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)


def _messages(body: Mapping[str, object]) -> list[Mapping[str, object]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise invalid("`messages` must be a non-empty array of objects", "messages")
    return [{**message, "content": _text(message.get("content"))} for message in messages]


def _text(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise invalid("`content` must be a text or a list of text parts", "messages")
    return "".join(map(str, texts))


def _limit(body: Mapping[str, object], chat: bool) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            return int(_number(body, name, 1, float("inf"), 1, whole=True))
    return None if chat else 16


def _sampling(body: Mapping[str, object], defaults: Sampling) -> Sampling:
    seed = body.get("seed")
    if seed is not None and type(seed) is not int:
        raise invalid("`seed` must be a whole number", "seed")
    return Sampling(
        temperature=_number(body, "temperature", 0, 100, defaults.temperature),
        top_k=int(_number(body, "top_k", -1, 1 << 31, defaults.top_k, whole=True)),
        top_p=_number(body, "top_p", 0, 1, defaults.top_p),
        seed=int.from_bytes(os.urandom(7), "big") if seed is None else seed,
    )


def _number(
    body: Mapping[str, object], name: str, least: float, most: float, default: float, whole: bool = False
) -> float:
    value = body.get(name)
    if value is None:
        return default
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not least <= value <= most:  # type: ignore[operator]
        kind = "whole number" if whole else "number"
        bounds = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise invalid(f"`{name}` must be a {kind}, {bounds}", name)
    return value  # type: ignore[return-value]


def _stops(body: Mapping[str, object]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise invalid("`stop` must be a text or a list of texts", "stop")
    return tuple(one for one in stops if one)
