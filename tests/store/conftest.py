"""The S3 server, started once for the session by the first test that wants it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from store.s3_server import S3Server, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
