"""Objects in buckets, on a real S3 server: which one is meant, who may read it, what a refusal says."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import SecretStr

from modelyard.config import S3Setting
from modelyard.errors import ChecksumMismatch, SourceForbidden, SourceNotFound
from modelyard.store import ObjectFiles, Store
from modelyard.store.buckets import s3_bucket
from modelyard.store.pace import Pace
from modelyard.store.signing import Credentials
from store.front import Reply, front_of, passed_on
from store.s3_server import BUCKET, SECRET, USER, S3Server

CONTENT = b"content" * 1000
DIGEST = sha256(CONTENT).hexdigest()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "store"


async def fetched(
    root: Path, setting: S3Setting, key: str, environ: Mapping[str, str] | None = None, bucket: str = BUCKET
) -> bytes:
    source = ObjectFiles(setting, Pace(pauses=()), environ)
    with closing(Store(root, [source])) as store:
        return (await asyncio.wait_for(store.fetch(f"s3://{bucket}/{key}"), 30)).path.read_bytes()


async def test_keys_with_all_kinds_of_characters(root: Path, s3: S3Server) -> None:
    s3.put("a folder/é?#%41.gguf", CONTENT)
    assert await fetched(root, s3.setting, "a folder/é%3F%23%2541.gguf") == CONTENT


async def test_a_digest_beside_the_object_is_held_to(root: Path, s3: S3Server) -> None:
    s3.put("right.gguf", CONTENT, sha256=DIGEST)
    assert await fetched(root, s3.setting, "right.gguf") == CONTENT
    s3.put("wrong.gguf", CONTENT, sha256="0" * 64)
    with pytest.raises(ChecksumMismatch, match=DIGEST):
        await fetched(root, s3.setting, "wrong.gguf")


async def test_a_missing_object_and_those_that_are_near(root: Path, s3: S3Server) -> None:
    s3.put("near/model-Q4.gguf", CONTENT)
    with pytest.raises(SourceNotFound, match=r"no object near/model-q4\.gguf; it has near/model-Q4\.gguf"):
        await fetched(root, s3.setting, "near/model-q4.gguf")
    with pytest.raises(SourceNotFound, match=r"it is a folder, which has near/model-Q4\.gguf"):
        await fetched(root, s3.setting, "near")
    with pytest.raises(SourceNotFound, match="no object x; check the bucket and the key"):
        await fetched(root, s3.setting, "x", bucket="no-such-bucket")


async def test_an_object_that_was_replaced(root: Path, s3: S3Server) -> None:
    s3.put("changing.gguf", CONTENT)
    with closing(Store(root, [ObjectFiles(s3.setting, Pace(pauses=()))])) as store:
        source = f"s3://{BUCKET}/changing.gguf"
        (await store.fetch(source)).path.unlink()
        s3.put("changing.gguf", CONTENT[::-1])
        with pytest.raises(SourceNotFound, match=r"has changed since it was first fetched.*#sha256="):
            await store.fetch(source)
        new = sha256(CONTENT[::-1]).hexdigest()
        assert (await store.fetch(f"{source}#sha256={new}")).digest == new


async def test_a_version_stays(root: Path, s3: S3Server) -> None:
    """In a bucket that keeps versions, the one that was first fetched is fetched again."""
    s3.ask("PUT", "/versioned")
    s3.ask(
        "PUT",
        "/versioned?versioning",
        body=b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
    )
    versioned = replace(s3, bucket="versioned")
    first = versioned.put("model.gguf", CONTENT)
    assert first
    with closing(Store(root, [ObjectFiles(s3.setting, Pace(pauses=()))])) as store:
        source = "s3://versioned/model.gguf"
        (await store.fetch(source)).path.unlink()
        versioned.put("model.gguf", CONTENT[::-1])
        assert (await store.fetch(source)).digest == DIGEST
        assert (await store.fetch(f"{source}#version={first}")).digest == DIGEST
        with pytest.raises(SourceNotFound):
            await store.fetch(f"{source}#version=none")


async def test_a_checksum_that_the_server_has_is_held_to(root: Path, s3: S3Server) -> None:
    told = {"x-amz-checksum-sha256": b64encode(sha256(CONTENT).digest()).decode()}
    s3.ask("PUT", f"/{BUCKET}/a%20folder/summed.gguf", told, CONTENT)

    def flipped(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        status, said, body = passed_on(s3.url)(method, path, headers)
        return status, said, body[:5] + b"x" + body[6:] if body else b""

    with front_of(flipped) as front, pytest.raises(ChecksumMismatch, match=DIGEST):
        await fetched(root, replace(s3, url=front.url).setting, "a folder/summed.gguf")
    assert await fetched(root, s3.setting, "a folder/summed.gguf") == CONTENT


# -- credentials -----------------------------------------------------------------------------------------


async def test_wrong_credentials(root: Path, s3: S3Server) -> None:
    s3.put("mine.gguf", CONTENT)
    wrong = replace(s3.setting, secret_access_key=SecretStr("wrong-one"))
    with pytest.raises(SourceForbidden, match="check the credentials") as caught:
        await fetched(root, wrong, "mine.gguf")
    assert "wrong-one" not in caught.value.message


async def test_credentials_of_the_environment(
    root: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("mine.gguf", CONTENT)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    assert await fetched(root, S3Setting(), "mine.gguf") == CONTENT


async def test_credentials_of_the_users_file(root: Path, s3: S3Server, tmp_path: Path) -> None:
    s3.put("mine.gguf", CONTENT)
    (tmp_path / ".aws").mkdir()
    keys = f"aws_access_key_id = {USER}\naws_secret_access_key = {SECRET}\n"
    (tmp_path / ".aws" / "credentials").write_text(f"[default]\naws_access_key_id = x\n[work]\n{keys}")
    environ = {"HOME": str(tmp_path), "AWS_PROFILE": "work"}
    setting = S3Setting(s3.url, path_style=True)
    assert await fetched(root, setting, "mine.gguf", environ) == CONTENT


async def test_nobody_asks_without_credentials(root: Path, s3: S3Server) -> None:
    s3.put("mine.gguf", CONTENT)
    with pytest.raises(SourceForbidden, match=r"AccessDenied|status 403"):
        await fetched(root, S3Setting(s3.url, path_style=True, anonymous=True), "mine.gguf")


# -- texts and settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("s3://bucket/key", None),
        ("gs://bucket/a/b_c.gguf#version=17", None),
        ("s3://bucket", "is not s3://BUCKET/KEY"),
        ("s3:///key", "is not s3://BUCKET/KEY"),
        ("s3://bucket/key?versionId=3", "?, # and % in a key are written"),
        ("s3://bucket/folder/", None),
        ("s3://bucket/", None),
        (f"s3://bucket/folder/#sha256={'0' * 64}", "write `sha256` at the model"),
        ("s3://bucket/../key", "dots alone"),
        ("s3://bucket/a//b", "empty parts"),
        ("s3://bucket/a%00b", "cannot be printed"),
        ("s3://bucket/key#sha256=1", "64 digits"),
    ],
)
def test_what_is_wrong_with_a_text(source: str, problem: str | None) -> None:
    found = ObjectFiles().problem(source)
    assert (found is None) if problem is None else problem in (found or "")


@pytest.mark.parametrize(
    ("setting", "environ", "url"),
    [
        (S3Setting(), {}, "https://my-models.s3.us-east-1.amazonaws.com"),
        (S3Setting(region="eu-west-1"), {}, "https://my-models.s3.eu-west-1.amazonaws.com"),
        (S3Setting(), {"AWS_REGION": "eu-west-2"}, "https://my-models.s3.eu-west-2.amazonaws.com"),
        (S3Setting(path_style=True), {}, "https://s3.us-east-1.amazonaws.com/my-models"),
        (S3Setting("https://minio:9000", path_style=True), {}, "https://minio:9000/my-models"),
        (S3Setting("https://minio:9000"), {}, "https://my-models.minio:9000"),
        (S3Setting(), {"AWS_ENDPOINT_URL": "http://minio"}, "http://minio/my-models"),
    ],
)
def test_where_a_bucket_is(setting: S3Setting, environ: dict[str, str], url: str) -> None:
    assert s3_bucket("my-models", setting, {"HOME": "/none", **environ}).url == url


def test_a_bucket_with_a_dot_has_no_certificate() -> None:
    bucket = s3_bucket("my.models", S3Setting(), {"HOME": "/none"})
    assert bucket.url == "https://s3.us-east-1.amazonaws.com/my.models"


def test_whose_credentials_are_used() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    of_environment = s3_bucket("b", S3Setting(), {"HOME": "/none", **keys}).credentials
    assert of_environment == Credentials("theirs", "s", "t")
    mine = S3Setting(access_key_id="mine", secret_access_key=SecretStr("m"))
    assert s3_bucket("b", mine, keys).credentials == Credentials("mine", "m")
    assert s3_bucket("b", S3Setting(), {"HOME": "/none"}).credentials is None
