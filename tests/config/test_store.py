"""The section `store`: how files are fetched and from where they may be."""

from __future__ import annotations

import pytest

from modelyard.config import Config, ConfigErrors, StoreSetting, load
from modelyard.config.difference import compare
from modelyard.config.versions import keyed

S3 = "endpoint: 'http://minio:9000/', access_key_id: me, secret_access_key: hunter2"


def text(section: str) -> Config:
    return load(None, f"store: {section}", {"HOME": "/home/ada"})


def test_nothing_gives_the_defaults() -> None:
    assert text("{}").store == StoreSetting(connections=4, bandwidth=0, allow_private=())


def test_everything_is_told() -> None:
    store = text(
        f"{{connections: 2, bandwidth: 10MB, allow_private: [models.lan, 10.0.0.0/8], s3: {{{S3}}}}}"
    )
    setting = store.store
    assert (setting.connections, setting.bandwidth) == (2, 10_000_000)
    assert setting.allow_private == ("models.lan", "10.0.0.0/8")
    assert (setting.s3.endpoint, setting.s3.path_style) == ("http://minio:9000", True)
    assert setting.s3.secret_access_key is not None
    assert setting.s3.secret_access_key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(store)


@pytest.mark.parametrize(
    ("section", "path", "message"),
    [
        ("{connections: 17}", "store.connections", "between 1 and 16"),
        ("{bandwidth: 0}", "store.bandwidth", "more than 0"),
        (
            "{allow_private: ['10.0.0.0/99']}",
            "store.allow_private[0]",
            "is not a host, an address or a network",
        ),
        ("{allow_private: ['http://h']}", "store.allow_private[0]", "is not a host"),
        ("{s3: {endpoint: minio}}", "store.s3.endpoint", "is not an address"),
        ("{s3: {endpoint: 'http://minio/bucket'}}", "store.s3.endpoint", "without a bucket"),
        ("{s3: {endpoint: 'http://me:hunter2@minio'}}", "store.s3.endpoint", "holds credentials"),
        ("{s3: {access_key_id: me}}", "store.s3", "needs both"),
        (f"{{s3: {{{S3}, anonymous: true}}}}", "store.s3.anonymous", "drop one"),
    ],
)
def test_what_is_wrong_is_named(section: str, path: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        text(section)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_change_needs_a_restart_and_tells_no_secret() -> None:
    found = compare(text("{}"), text(f"{{bandwidth: 1MB, s3: {{{S3}}}}}"))
    assert {one.path for one in found.fixed} == {
        "store.bandwidth",
        "store.s3.endpoint",
        "store.s3.path_style",
        "store.s3.access_key_id",
        "store.s3.secret_access_key",
    }
    assert "hunter2" not in str(found)


def test_a_password_in_a_source_is_told_to_nobody() -> None:
    """Not in what changed, and no digest lets it be guessed."""

    def model(source: str) -> Config:
        return load(None, f"models: {{a: {{engine: fake, source: '{source}'}}}}", {"HOME": "/home/ada"})

    old, new = model("https://ada:hunter2@host/a?token=hunter3"), model("https://host/a")
    (changed,) = compare(old, new).models
    assert [(one.before, one.after) for one in changed.fields] == [
        ("https://****@host/a?…", "https://host/a")
    ]
    digests = {keyed(old, key).models[0].spec.digest for key in ("one", "other")}
    assert len(digests) == 2, "it depends on what nobody knows"
    assert len({keyed(new, key).models[0].spec.digest for key in ("one", "other")}) == 1
