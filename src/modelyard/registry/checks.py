"""What may be kept: names, tags, texts and JSON as callers hand them in. All raise InvalidRequest.

Used by `registry` before it opens a transaction, so that the database is never the first to refuse a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from modelyard.config.secrets import HIDDEN, plain
from modelyard.config.shapes import is_name
from modelyard.errors import InvalidRequest
from modelyard.registry.records import Artifact, Capabilities, Json, NewVersion

TAG = r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}$"
WORD = r"^[a-z][a-z0-9_-]{0,63}$"
LANGUAGE = r"^[A-Za-z][A-Za-z0-9_-]{0,31}$"
DIGEST = r"^[0-9a-f]{12,64}$"
SHA256 = r"^[0-9a-f]{64}$"
LARGEST_JSON = 2**20  # bytes
LONGEST_TEXT = 8192
MOST_ALIASES = 100
MOST_TAGS = 1000
MOST_ADDITIONS = 1000  # keys, and as many engine profiles
MOST_PAIRS = 20_000
MOST_LANGUAGES = 1000
# User and password of a URL, and what a link was signed with.
_IN_URL = re.compile(r"(?<=://)[^/?#\s]*@|(?<=\?)[^\s]+")


def name_of(value: str, param: str = "name") -> str:
    if not is_name(value):
        raise InvalidRequest(f"{param}: {value[:200]!r} is not a name", param=param)
    return value


def tag_of(value: str) -> str:
    return _matching(value, TAG, "tag", "a tag: a letter, digit or _, then those or . + -, 64 in all")


def who_of(value: str) -> str:
    return text_of(value, "who", longest=200)


def text_of(value: str, param: str, longest: int = LONGEST_TEXT) -> str:
    """A text that every database takes."""
    if len(value) > longest:
        raise InvalidRequest(f"{param}: is longer than {longest} characters", param=param)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{param}: holds half of a surrogate pair", param=param) from None
    if "\0" in value:
        raise InvalidRequest(f"{param}: holds a NUL character", param=param)
    return value


def aliases_of(values: Iterable[str], own: str) -> tuple[str, ...]:
    aliases = tuple(name_of(value, "aliases") for value in values)
    if len(aliases) > MOST_ALIASES:
        raise InvalidRequest(f"aliases: are more than {MOST_ALIASES}", param="aliases")
    if own in aliases or len(set(aliases)) != len(aliases):
        raise InvalidRequest("aliases: name the model itself, or one name twice", param="aliases")
    return aliases


def json_of(value: Json, param: str) -> dict[str, Any]:
    """The object, a copy, when it is plain JSON."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param}: is not JSON: {error}", param=param) from None
    if len(text) > LARGEST_JSON:
        raise InvalidRequest(f"{param}: is larger than 1 MiB", param=param)
    found: object = json.loads(text)
    if not isinstance(found, dict):
        raise InvalidRequest(f"{param}: is not a JSON object", param=param)
    return found


def version_of(new: NewVersion) -> dict[str, Any]:
    """The columns of a version, apart from its model's and its number."""
    return {
        "spec": json_of(new.spec, "spec"),
        "digest": _matching(new.digest, DIGEST, "digest", "a digest in hex"),
        "capabilities": capabilities_of(new.capabilities),
    }


def capabilities_of(value: Capabilities) -> dict[str, Any]:
    for feature in value.features:
        _matching(feature, WORD, "capabilities", "a capability")
    languages = (*value.languages, *(language for pair in value.pairs for language in pair))
    for language in set(languages):
        _matching(language, LANGUAGE, "capabilities.languages", "a language's code")
    if len(value.languages) > MOST_LANGUAGES or len(value.pairs) > MOST_PAIRS:
        raise InvalidRequest("capabilities: name too many languages", param="capabilities")
    if value.context is not None and not 0 < value.context < 2**53:
        raise InvalidRequest("capabilities.context: is no number of tokens", param="capabilities.context")
    return {
        "features": sorted(value.features),
        "context": value.context,
        "languages": list(value.languages),
        "pairs": [list(pair) for pair in value.pairs],
        "files": None if value.files is None else json_of(asdict(value.files), "capabilities.files"),
    }


def artifacts_of(values: Iterable[Artifact]) -> list[dict[str, Any]]:
    """The columns of a version's files, by path."""
    files = sorted((asdict(value) for value in values), key=lambda file: str(file["path"]))
    if len({file["path"] for file in files}) != len(files):
        raise InvalidRequest("artifacts: one path is named twice", param="artifacts")
    for file in files:
        text_of(file["path"], "artifacts.path", longest=1024)
        text_of(file["source"], "artifacts.source")
        text_of(file["licence"], "artifacts.licence")
        for digest in (file["sha256"], file["made_from"]):
            if digest:
                _matching(digest, SHA256, "artifacts.sha256", "a sha256 in hex")
        if not 0 <= file["size"] < 2**63:
            raise InvalidRequest("artifacts.size: is no number of bytes", param="artifacts.size")
    return files


def without_secrets(value: object) -> Any:
    """JSON as the audit log keeps it: what may be a secret is not in it."""
    return _without_logins(plain(value))


def _without_logins(value: object) -> object:
    if isinstance(value, str):
        return _IN_URL.sub(lambda found: HIDDEN + "@" * found[0].endswith("@"), value)
    if isinstance(value, Mapping):
        return {key: _without_logins(item) for key, item in value.items()}
    return [_without_logins(item) for item in value] if isinstance(value, list) else value


def _matching(value: str, pattern: str, param: str, what: str) -> str:
    if not re.fullmatch(pattern, value) or value.endswith("\n"):
        raise InvalidRequest(f"{param}: {value[:200]!r} is not {what}", param=param)
    return value
