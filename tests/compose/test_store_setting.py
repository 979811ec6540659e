"""What a configuration says of the store reaches its sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.live_yard import fake, live_yard
from modelyard.config import load
from modelyard.errors import SourceForbidden
from store.front import front_of
from store.origins import Files

CONTENT = b"any bytes"


async def test_private_hosts_and_a_bucket_of_an_own_server() -> None:
    with front_of(Files({"file": CONTENT}).web) as front:
        store = {"allow_private": ["127.0.0.1"], "s3": {"endpoint": front.url, "anonymous": True}}
        async with live_yard({"a": fake()}, store=store) as yard:
            for source in (f"{front.url}/file", "s3://bucket/file"):
                assert (await yard.yard.store.fetch(source)).path.read_bytes() == CONTENT


async def test_nothing_private_without_a_word() -> None:
    async with live_yard({"a": fake()}) as yard:
        assert "is not encrypted" in (yard.yard.store.problem("http://127.0.0.1/file") or "")
        with pytest.raises(SourceForbidden, match="loopback"):
            await yard.yard.store.fetch("https://127.0.0.1:9/file")


def test_the_example_of_the_guide_is_right() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "files.md").read_text()
    example = text.partition("```yaml\nstore:")[2].partition("```")[0]
    setting = load(None, f"store:{example}", {"HOME": "/", "MINIO_USER": "u", "MINIO_PASSWORD": "p"}).store
    assert (setting.bandwidth, setting.s3.endpoint) == (50_000_000, "http://minio.lan:9000")
