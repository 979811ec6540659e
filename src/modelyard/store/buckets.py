"""Where a bucket is, and whose credentials open it: the configuration's, the environment's, AWS's files'.

Used by `objects_client`.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from obstore.store import GCSStore, S3Store

from modelyard.config.values import S3Setting
from modelyard.store.signing import Credentials, signed

TIMEOUT = 20  # seconds, for a connection and for each silence
# By these obstore finds credentials itself; the shared file comes after them, a machine's role last.
_ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """A bucket at `url`. `in_host`: its name is a part of the host there. Without `credentials`, those of a
    role are looked for, or none are (`anonymous`)."""

    name: str
    url: str
    in_host: bool
    region: str
    anonymous: bool
    credentials: Credentials | None

    def store(self) -> S3Store:
        """What asks for objects. Raises ValueError and obstore's errors for what cannot be."""
        config: dict[str, Any] = {
            "endpoint": self.url if self.in_host else self.url.removesuffix(f"/{self.name}"),
            "virtual_hosted_style_request": self.in_host,
            "region": self.region,
        }
        if self.anonymous:
            config["skip_signature"] = True
        elif self.credentials is not None:
            config["access_key_id"] = self.credentials.access_key_id
            config["secret_access_key"] = self.credentials.secret_access_key
            if self.credentials.session_token:
                config["session_token"] = self.credentials.session_token
        options = client_options(self.url)
        return S3Store(self.name, config=config, client_options=options, retry_config={"max_retries": 0})  # type: ignore[arg-type]

    def question(self, key: str, version: str) -> tuple[str, dict[str, str]]:
        """The address of an object and the headers of a HEAD that asks for its checksum, too. None are there
        where nobody is known to sign them."""
        url = f"{self.url}/{quote(key, safe='/~')}" + (
            f"?versionId={quote(version, safe='~')}" if version else ""
        )
        asked = {"x-amz-checksum-mode": "ENABLED"}
        if self.anonymous:
            return url, asked
        if self.credentials is None:
            return url, {}
        return url, signed("HEAD", url, asked, self.credentials, self.region)


def s3_bucket(name: str, setting: S3Setting, environ: Mapping[str, str]) -> S3Bucket:
    """A bucket of `setting`'s server, else of the environment's, else of AWS."""
    shared = _shared(environ)
    named = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = setting.endpoint or next((environ[one] for one in named if environ.get(one)), "")
    region = setting.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or ""
    region = region or shared.get("region", "us-east-1")
    # A certificate for *.s3.amazonaws.com holds for no name with a dot in it.
    in_host = not setting.path_style and "." not in name and (bool(setting.endpoint) or not endpoint)
    parts = urlsplit(endpoint or f"https://s3.{region}.amazonaws.com")
    url = f"{parts.scheme}://{name}.{parts.netloc}" if in_host else f"{parts.scheme}://{parts.netloc}/{name}"
    anonymous = setting.anonymous or environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true"
    return S3Bucket(name, url, in_host, region, anonymous, _credentials(setting, environ, shared))


def gs_store(name: str) -> GCSStore:
    """What asks for objects of Google's bucket. A service account's file may lead elsewhere (`gcs_base_url`),
    as those of emulators do."""
    return GCSStore(name, client_options=client_options("http://"), retry_config={"max_retries": 0})


def client_options(address: str) -> Any:
    """How obstore connects."""
    return {
        "allow_http": address.startswith("http://"),
        "connect_timeout": f"{TIMEOUT}s",
        "read_timeout": f"{TIMEOUT}s",
        "timeout": "1d",  # of a whole answer; the fetch has its own deadline
    }


def _credentials(
    setting: S3Setting, environ: Mapping[str, str], shared: Mapping[str, str]
) -> Credentials | None:
    if setting.access_key_id and setting.secret_access_key is not None:
        token = setting.session_token.get_secret_value() if setting.session_token is not None else ""
        return Credentials(setting.access_key_id, setting.secret_access_key.get_secret_value(), token)
    names = ("access_key_id", "secret_access_key", "session_token")
    found = {name: environ.get(f"AWS_{name.upper()}", "") for name in names}
    if not found["access_key_id"] and not any(environ.get(one) for one in _ROLES):
        found = {name: shared.get(f"aws_{name}", "") for name in names}
    return Credentials(**found) if found["access_key_id"] and found["secret_access_key"] else None


def _shared(environ: Mapping[str, str]) -> dict[str, str]:
    """What AWS's own files say for the profile: `~/.aws/credentials`, before `~/.aws/config`."""
    home = Path(environ.get("HOME") or "~").expanduser() / ".aws"
    profile = environ.get("AWS_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, name, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        parser = configparser.RawConfigParser()
        with suppress(OSError, ValueError, configparser.Error):
            parser.read_string((Path(environ.get(variable) or home / name)).expanduser().read_text())
            found |= dict(parser[section]) if parser.has_section(section) else {}
    return found
