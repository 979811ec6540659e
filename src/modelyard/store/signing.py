"""AWS's signature, version 4, for the one question that obstore does not ask: an object's own checksum.

Used by `objects_client`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_EMPTY = sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys that are known by themselves; those of a role are obstore's alone."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""


def signed(
    method: str,
    url: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    region: str,
    *,
    body: bytes = b"",
) -> dict[str, str]:
    """The headers with which S3 takes the request as that of the owner of these keys, now. The path of `url`
    is escaped; `headers` begin with `x-amz-`."""
    now, parts = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), urlsplit(url)
    content = sha256(body).hexdigest() if body else _EMPTY
    sent = {"host": parts.netloc, **headers, "x-amz-date": now, "x-amz-content-sha256": content}
    if credentials.session_token:
        sent["x-amz-security-token"] = credentials.session_token
    names = sorted(sent)
    query = sorted(parse_qsl(parts.query, keep_blank_values=True))
    canonical = [
        method,
        quote(unquote(parts.path or "/"), safe="/~"),
        "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in query),
        *(f"{name}:{sent[name].strip()}" for name in names),
        "",
        ";".join(names),
        content,
    ]
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    digest = sha256("\n".join(canonical).encode()).hexdigest()
    key = f"AWS4{credentials.secret_access_key}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}".encode(), "sha256").hex()
    sent["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key_id}/{scope}, "
        f"SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    del sent["host"]
    return sent
