"""The section `store`: how model files are fetched, and from where they may be. Used by `build`."""

from __future__ import annotations

import re
from ipaddress import ip_network
from urllib.parse import urlsplit

from modelyard.config.problems import Refuse
from modelyard.config.schema import S3Section, StoreSection
from modelyard.config.values import S3Setting, StoreSetting

_HOST = re.compile(r"(?i)[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?")


def store_setting(section: StoreSection, refuse: Refuse) -> StoreSetting:
    """The section with its defaults."""
    for index, entry in enumerate(section.allow_private):
        if not is_network(entry) and not _HOST.fullmatch(entry):
            refuse(
                f"store.allow_private[{index}]",
                "is not a host, an address or a network; write models.lan, 10.1.2.3 or 10.0.0.0/8",
            )
    return StoreSetting(
        connections=section.connections,
        bandwidth=section.bandwidth or 0,
        allow_private=tuple(section.allow_private),
        s3=_s3(section.s3, refuse),
        quota=section.quota or 0,
        verify_every=section.verify_every or 0.0,
    )


def _s3(section: S3Section, refuse: Refuse) -> S3Setting:
    endpoint = section.endpoint or ""
    parts = urlsplit(endpoint)
    if endpoint and (
        parts.scheme not in {"http", "https"} or not parts.netloc or parts.path not in {"", "/"}
    ):
        refuse("store.s3.endpoint", "is not an address such as http://minio:9000, without a bucket")
    if "@" in parts.netloc:
        refuse("store.s3.endpoint", "holds credentials; put them under access_key_id and secret_access_key")
    if (section.access_key_id is None) != (section.secret_access_key is None):
        refuse("store.s3", "needs both access_key_id and secret_access_key, or neither")
    if section.anonymous and section.access_key_id is not None:
        refuse("store.s3.anonymous", "leaves no use for access_key_id; drop one of them")
    return S3Setting(
        endpoint=endpoint.rstrip("/"),
        region=section.region or "",
        path_style=bool(endpoint) if section.path_style is None else section.path_style,
        anonymous=section.anonymous,
        access_key_id=section.access_key_id or "",
        secret_access_key=section.secret_access_key,
        session_token=section.session_token,
    )


def is_network(text: str) -> bool:
    """Whether an entry of `allow_private` is a network, or one address, and no name."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
