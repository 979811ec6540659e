"""An engine's own refusals in our terms. Called by the serve loop."""

from __future__ import annotations

import re
import time
from email.utils import mktime_tz, parsedate_tz

import orjson

from modelyard.config.secrets import without
from modelyard.errors import (
    ContextOverflow,
    EngineFailed,
    EngineProtocol,
    EngineRefused,
    InvalidRequest,
    ModelyardError,
    RateLimited,
)
from modelyard.gateway.demand import Demand
from modelyard.gateway.relay import Result
from modelyard.runtime.entries import Entry

LONGEST_PAUSE = 3600.0  # seconds
INPUTS = {  # by the engine's path: the field that holds what may be too long
    b"/v1/chat/completions": "messages",
    b"/v1/completions": "prompt",
    b"/v1/embeddings": "input",
    b"/v1/responses": "input",
}

# llama.cpp answers 500 also to some requests that it can never take, on every instance alike:
_CLIENTS = re.compile(r"(image|audio|video) input is not supported|Failed to parse (messages|tools):")
# How a Modelyard says that it does not translate between two languages.
_UNTRANSLATED = b'"unsupported_language"'
# How engines say that an input is too long: llama.cpp, OpenAI, vLLM.
_TOO_LONG = re.compile(rb"exceed_context_size|context_length_exceeded|maximum context length is")


def overflow(path: bytes, result: Result) -> ContextOverflow | None:
    """What an answer is that says that the input of `path` was too long; None for any other."""
    if result.status != 400 or not _TOO_LONG.search(result.body):
        return None
    return ContextOverflow(message(result.body), param=INPUTS.get(path))


def refusal(demand: Demand, result: Result) -> ModelyardError:
    """What an engine's own answer to a request is in our terms, with its message."""
    said = without(message(result.body), demand.entry.spec.parameters)
    if advice := _refused_us(demand.entry, result):
        return EngineRefused(f"it answered with {result.status}: {said}; {advice}")
    if result.status == 429:
        return RateLimited(said)
    if demand.path == b"/detokenize" and result.status == 500 and "range_check" in said:
        return InvalidRequest("`tokens` holds one that the model does not have.", param="tokens")
    if result.status >= 500 and not (result.status == 500 and _CLIENTS.match(said)):
        return EngineFailed(said)
    return InvalidRequest(said) if result.status >= 400 else EngineProtocol(said)


def pause(result: Result) -> float:
    """For how many seconds the server asks to be left alone; 0 where it does not."""
    if result.status != 429:
        return 0.0
    said = next((value for name, value in result.headers if name == b"retry-after"), b"")
    return min(max(float(said) if said.isdigit() else _until(said), 1.0), LONGEST_PAUSE)


def _until(said: bytes) -> float:
    """Seconds until a date of HTTP; 0 for what is none."""
    date = parsedate_tz(said.decode("latin-1"))
    try:
        return 0.0 if date is None else mktime_tz(date) - time.time()
    except (OverflowError, ValueError):  # a year that there is not
        return 0.0


def _refused_us(entry: Entry, result: Result) -> str:
    """What the operator has to mend, where the answer is about our key, or the model's name, address or
    languages there; empty for one that is about the request."""
    unknown = result.status == 404 and b"model" in result.body
    unknown |= result.status == 400 and _UNTRANSLATED in result.body
    if not unknown and result.status not in (401, 403) and not 300 <= result.status < 400:
        return ""
    told = entry.engine.refused(entry.spec, result.status)
    return "" if told is None else told[1]


def message(body: bytes) -> str:
    """The message of an engine's error body, or its beginning."""
    try:
        error = orjson.loads(body)["error"]
        return error if isinstance(error, str) else str(error["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
