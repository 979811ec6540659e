"""The hub as a source: whole files, from the commit that was meant, and errors that say what to do."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelyard.errors import (
    ChecksumMismatch,
    DiskFull,
    DownloadFailed,
    SourceForbidden,
    SourceNotFound,
    SourceOffline,
    StoreError,
)
from modelyard.store import HubFiles, Progress, Store
from modelyard.store.hub import HubSettings
from modelyard.store.index import key_of
from modelyard.store.pace import Pace
from store.hub_server import COMMIT, OTHER_COMMIT, REPO, SIGNED, Hub, Repo, hub_server
from waiting import until

CONTENT = os.urandom(300_000)
DIGEST = sha256(CONTENT).hexdigest()
FILE = "model-Q4_K_M.gguf"
SOURCE = f"hf://{REPO}/{FILE}"
PAUSES = (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def started() -> None:
    """The package is slow to import, and its time is not that of the first test."""
    import modelyard.store.hub_client  # noqa: F401


@pytest.fixture
def hub(started: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_server() as hub:
        hub.add(FILE, CONTENT)
        yield hub


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def store_of(root: Path, environ: Mapping[str, str]) -> closing[Store]:
    return closing(Store(root, [HubFiles(environ, Pace(pauses=PAUSES))]))


def nothing_kept(root: Path) -> bool:
    return not [p for name in ("blobs", "sources", "work") for p in (root / name).rglob("*") if p.is_file()]


async def refused(
    root: Path, environ: Mapping[str, str], kind: type[StoreError], *said: str, source: str = SOURCE
) -> StoreError:
    """The fetch fails with this error, which says all of this, and nothing is kept."""
    with store_of(root, environ) as store:
        with pytest.raises(kind) as caught:
            await asyncio.wait_for(store.fetch(source), 20)
        assert store.cached(source) is None
    for words in said:
        assert words in caught.value.message
    assert SIGNED not in caught.value.message
    assert caught.value.status == 503
    assert caught.value.retryable is (kind is DownloadFailed)
    assert nothing_kept(root)
    return caught.value


# -- what comes ------------------------------------------------------------------------------------------


async def test_a_file_comes_whole_into_a_blob(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    steps: list[Progress] = []
    with store_of(root, environ) as store:
        file = await store.fetch(SOURCE, progress=steps.append)
        assert (file.size, file.digest) == (len(CONTENT), DIGEST)
        assert file.path == root / "blobs" / "sha256" / DIGEST
        assert file.path.read_bytes() == CONTENT
        before = len(hub.asked)
        assert await store.fetch(SOURCE) == file
        assert len(hub.asked) == before
    assert steps[-1] == Progress(SOURCE, len(CONTENT), len(CONTENT))
    assert not list((root / "work").iterdir())
    assert {one.path for one in hub.asked if not one.cdn} == {
        f"/{REPO}/resolve/main/{FILE}",
        f"/{REPO}/resolve/{COMMIT}/{FILE}",
        f"/api/models/{REPO}/revision/{COMMIT}",
    }
    assert not (Path(environ["HF_HOME"])).exists(), "the user's cache is not ours to write"


async def test_a_small_file_has_no_digest_to_hold_it_against(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    hub.add("sub folder/config.json", b"{}")
    with store_of(root, environ) as store:
        file = await store.fetch(f"hf://{REPO}/sub folder/config.json")
        assert file.path.read_bytes() == b"{}"


async def test_the_commit_is_recorded_and_stays(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    """The branch moves, the file is lost: the same bytes come again, also after a restart."""
    with store_of(root, environ) as store:
        file = await store.fetch(SOURCE)
    record = json.loads((root / "sources" / f"{key_of(SOURCE)}.json").read_text())
    assert record["exact"] == f"hf://{REPO}@{COMMIT}/{FILE}"
    hub.repos[REPO].revisions["main"] = OTHER_COMMIT
    hub.add(FILE, b"other", commit=OTHER_COMMIT)
    with store_of(root, environ) as store:
        for _ in range(2):
            file.path.unlink()
            assert (await store.fetch(SOURCE)).digest == DIGEST
        other = await store.fetch(f"hf://{REPO}@main/{FILE}")
        assert other.path.read_bytes() == b"other"


async def test_a_commit_that_is_gone_is_not_replaced_by_another(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    with store_of(root, environ) as store:
        (await store.fetch(SOURCE)).path.unlink()
        hub.repos[REPO].revisions["main"] = OTHER_COMMIT
        hub.add(FILE, b"other", commit=OTHER_COMMIT)
        del hub.repos[REPO].files[COMMIT]
        with pytest.raises(SourceNotFound, match=f"has no revision {COMMIT}; name one that"):
            await store.fetch(SOURCE)


async def test_a_lost_file_comes_again_as_it_was_or_not_at_all(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    with store_of(root, environ) as store:
        (await store.fetch(SOURCE)).path.unlink()
        hub.add(FILE, b"other bytes under the same commit")
        with pytest.raises(ChecksumMismatch, match=DIGEST):
            await store.fetch(SOURCE)
        assert store.cached(SOURCE) is None


@pytest.mark.parametrize("revision", ["v1", "a%2Fbranch", "refs/pr/7", OTHER_COMMIT])
async def test_a_revision_is_named(root: Path, hub: Hub, environ: dict[str, str], revision: str) -> None:
    hub.repos[REPO].revisions |= dict.fromkeys(("v1", "a/branch", "refs/pr/7"), OTHER_COMMIT)
    hub.add(FILE, b"other", commit=OTHER_COMMIT)
    with store_of(root, environ) as store:
        file = await store.fetch(f"hf://{REPO}@{revision}/{FILE}")
        assert file.path.read_bytes() == b"other"


async def test_the_token_opens_the_hub_and_goes_nowhere_else(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    hub.repos[REPO].gated = True
    with store_of(root, {**environ, "HF_TOKEN": "hf_member"}) as store:
        assert (await store.fetch(SOURCE)).digest == DIGEST
    bearers = {(one.cdn, one.headers.get("authorization")) for one in hub.asked}
    assert bearers == {(False, "Bearer hf_member"), (True, None)}


async def test_no_more_is_told_than_who_asks(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    with store_of(root, environ) as store:
        await store.fetch(SOURCE)
    for one in hub.asked:
        assert [part.split("/")[0] for part in one.headers["user-agent"].split("; ")] == [
            "modelyard",
            "hf_hub",
            "python",
        ]
        assert "authorization" not in one.headers


def test_the_package_is_imported_for_a_fetch_alone_and_tells_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import modelyard.cli, modelyard.compose
from modelyard.store import Store
store = Store(Path(sys.argv[1]))
assert store.problem("hf://org/repo/file.gguf") is None
assert store.cached("hf://org/repo/file.gguf") is None
assert not {"huggingface_hub", "httpx2", "hf_xet"} & set(sys.modules)
import modelyard.store.hub_client
from huggingface_hub import constants
assert constants.HF_HUB_DISABLE_TELEMETRY
assert "hf_xet" not in sys.modules
"""
    bare = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=30, env=bare)


# -- the user's own cache --------------------------------------------------------------------------------


def keep(hub: Hub, environ: Mapping[str, str], path: str) -> Path:
    """The file as huggingface_hub itself keeps it."""
    from huggingface_hub import hf_hub_download

    cache = Path(environ["HF_HOME"]) / "hub"
    kept = hf_hub_download(REPO, path, cache_dir=cache, endpoint=hub.url, token=False)
    hub.asked.clear()
    return Path(kept)


@pytest.fixture
def users(hub: Hub, environ: dict[str, str]) -> Path:
    return keep(hub, environ, FILE)


async def test_a_file_of_the_users_cache_is_used_where_it_lies(
    root: Path, hub: Hub, environ: dict[str, str], users: Path
) -> None:
    with store_of(root, environ) as store:
        file = await store.fetch(SOURCE)
        assert (file.path, file.digest) == (users, DIGEST)
        assert [one.path for one in hub.asked if one.method != "HEAD"] == [
            f"/api/models/{REPO}/revision/{COMMIT}"
        ]
        users.unlink()
        assert store.cached(SOURCE) is None
        assert (await store.fetch(SOURCE)).path == root / "blobs" / "sha256" / DIGEST


async def test_an_old_file_of_the_users_cache_is_not_taken_for_the_new_one(
    root: Path, hub: Hub, environ: dict[str, str], users: Path
) -> None:
    hub.repos[REPO].revisions["main"] = OTHER_COMMIT
    hub.add(FILE, b"other", commit=OTHER_COMMIT)
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).path.read_bytes() == b"other"


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
@pytest.mark.parametrize("path", [FILE, f"sub/folder/{FILE}"])
async def test_offline_the_users_cache_is_enough(
    root: Path, hub: Hub, environ: dict[str, str], revision: str, path: str
) -> None:
    hub.add(path, CONTENT)
    kept = keep(hub, environ, path)
    source = f"hf://{REPO}{revision}/{path}"
    with store_of(root, {**environ, "HF_HUB_OFFLINE": "1"}) as store:
        file = await store.fetch(source)
        assert (file.path, file.digest) == (kept, DIGEST)
    assert hub.asked == []
    record = json.loads((root / "sources" / f"{key_of(source)}.json").read_text())
    assert record["exact"] == ("" if revision else f"hf://{REPO}@{COMMIT}/{path}")


async def test_a_hub_that_is_down_is_no_reason_to_refuse_what_is_here(
    root: Path, hub: Hub, environ: dict[str, str], users: Path
) -> None:
    hub.refusals.append((503, {}))
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).path == users
    assert len(hub.asked) == 1


@pytest.mark.parametrize("offline", ["0", "1"])
async def test_a_damaged_file_of_the_users_cache_is_named_and_left_alone(
    root: Path, environ: dict[str, str], users: Path, offline: str
) -> None:
    users.resolve().write_bytes(b"damaged")
    environ["HF_HUB_OFFLINE"] = offline
    await refused(root, environ, ChecksumMismatch, DIGEST, f"Mend or delete {users} and ask again")
    assert users.read_bytes() == b"damaged"
    assert not any((root / "quarantine").iterdir())


async def test_offline_without_the_file(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    environ["HF_HUB_OFFLINE"] = "1"
    cache = Path(environ["HF_HOME"]) / "hub"
    said = (f"is not in {cache}", "HF_HUB_OFFLINE forbids", "name its path")
    await refused(root, environ, SourceOffline, *said)
    assert hub.asked == []


# -- what the hub refuses --------------------------------------------------------------------------------


async def test_a_gated_repository_without_a_token(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.repos[REPO].gated = True
    said = f"accept its licence at {hub.url}/{REPO} and set HF_TOKEN"
    await refused(root, environ, SourceForbidden, said, "(none is set)")


async def test_a_gated_repository_with_a_strangers_token(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    hub.repos[REPO].gated = True
    environ["HF_TOKEN"] = "hf_stranger"
    said = f"accept its licence at {hub.url}/{REPO} and set HF_TOKEN"
    failure = await refused(root, environ, SourceForbidden, said, "(one is set)")
    assert "hf_stranger" not in failure.message


async def test_a_token_that_is_none(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    environ["HF_TOKEN"] = "hf_invented"
    said = ("refuses it with status 401", f"set HF_TOKEN to a token that may read {hub.url}/{REPO}")
    await refused(root, environ, SourceForbidden, *said)


async def test_a_token_that_cannot_be_sent(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    environ["HF_TOKEN"] = "hf_two\nlines"
    failure = await refused(root, environ, SourceForbidden, SOURCE, "HF_TOKEN has characters", "set it anew")
    assert "lines" not in failure.message
    assert hub.asked == []


async def test_a_disabled_repository(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.refusals.append((403, {"X-Error-Message": "Access to this resource is disabled."}))
    await refused(root, environ, SourceForbidden, "was disabled by", "use another")


@pytest.mark.parametrize("token", ["", "hf_stranger"])
async def test_a_repository_that_is_not_there(
    root: Path, hub: Hub, environ: dict[str, str], token: str
) -> None:
    hub.repos["tiny/private"] = Repo(private=True)
    environ["HF_TOKEN"] = token
    for name in ("tiny/none", "tiny/private"):
        said = (f"has no repository {name}, or it is private", "check its name, and set HF_TOKEN")
        await refused(root, environ, SourceNotFound, *said, source=f"hf://{name}/{FILE}")


async def test_a_revision_that_is_not_there(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    said = f"{REPO} has no revision v9; name one that {hub.url}/{REPO} has"
    await refused(root, environ, SourceNotFound, said, source=f"hf://{REPO}@v9/{FILE}")


async def test_a_file_that_is_not_there_and_those_that_are_near(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    said = f"{REPO} has no file model-q4_k_m.gguf; it has {FILE}"
    source = f"hf://{REPO}/model-q4_k_m.gguf"
    await refused(root, environ, SourceNotFound, said, source=source)
    said = f"; {hub.url}/{REPO}/tree/main lists its files"
    await refused(root, environ, SourceNotFound, said, source=f"hf://{REPO}/zzz")


async def test_what_is_no_hub(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.refusals.append((200, {}))
    await refused(root, environ, SourceNotFound, "does not answer as a hub does", "check HF_ENDPOINT")
    hub.refusals.append((404, {}))
    await refused(root, environ, SourceNotFound, "has no such file; check the source and HF_ENDPOINT")


async def test_a_hub_that_is_down(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.refusals.extend([(503, {})] * (1 + len(PAUSES)))
    await refused(root, environ, DownloadFailed, "answered with status 503; try again later")
    assert len(hub.asked) == 1 + len(PAUSES)


async def test_the_text_of_a_refusal_is_not_waited_for(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    """It is promised, and never comes."""
    hub.cdn_refusals.append((503, {"Content-Length": "1000"}))
    with store_of(root, environ) as store:
        async with asyncio.timeout(5):
            assert (await store.fetch(SOURCE)).digest == DIGEST


async def test_nobody_at_the_endpoint(root: Path, environ: dict[str, str]) -> None:
    environ["HF_ENDPOINT"] = "http://user:hunter2@127.0.0.1:9"
    said = ("the connection to http://****@127.0.0.1:9 failed", "check it and try again")
    failure = await refused(root, environ, DownloadFailed, *said)
    assert "hunter2" not in failure.message


# -- 429 -------------------------------------------------------------------------------------------------


async def test_a_wait_that_is_asked_for_is_waited(
    root: Path, hub: Hub, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One second is in the bound, a second one is not; each of them by another header."""
    monkeypatch.setattr("modelyard.store.pace.LONGEST_WAIT", 1.5)
    hub.refusals.append((429, {"Retry-After": "1"}))
    with store_of(root / "first", environ) as store:
        before = asyncio.get_running_loop().time()
        await store.fetch(SOURCE)
        assert asyncio.get_running_loop().time() - before >= 1
    hub.asked.clear()
    hub.refusals.extend([(429, {"RateLimit": '"resolvers";r=0;t=1'}), (429, {"Retry-After": "1"})])
    said = ("limits how often it is asked (429); try again in 1 s", "or set HF_TOKEN")
    failure = await refused(root, environ, DownloadFailed, *said)
    assert failure.retry_after == 1
    assert len(hub.asked) == 2


async def test_a_wait_that_is_too_long_is_told_at_once(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.cdn_refusals.append((429, {"Retry-After": "3600"}))
    failure = await refused(root, environ, DownloadFailed, "try again in 3600 s")
    assert failure.retry_after == 3600


# -- transfers that go wrong -----------------------------------------------------------------------------


async def test_a_cut_transfer_goes_on_where_it_was_cut(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.cuts.extend([100_000, 0, 0, 50_000, 0, 0])
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).path.read_bytes() == CONTENT
    begins = [one.headers["range"].split("=")[1].split("-")[0] for one in hub.requests("GET", cdn=True)]
    assert begins == ["0", "100000", "100000", "100000", "150000", "150000", "150000"]


async def test_what_came_before_a_failure_is_not_fetched_again(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    hub.cuts.extend([100_000, *[0] * (1 + len(PAUSES))])
    await refused(root, environ, DownloadFailed, "try again")
    hub.cuts.clear()
    hub.asked.clear()
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).digest == DIGEST
    assert [one.headers["range"].split("=")[1].split("-")[0] for one in hub.requests("GET", cdn=True)] == [
        "100000"
    ]
    assert not any((root / "partial").iterdir())


async def test_a_large_file_comes_in_parts(
    root: Path, hub: Hub, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.store.transfer.PIECE", 130_000)
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).path.read_bytes() == CONTENT
    assert len(hub.requests("GET", cdn=True)) == 3


async def test_a_server_without_ranges_begins_again(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.ranges = False
    hub.cuts.extend([100_000, 50_000])
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).path.read_bytes() == CONTENT


@pytest.mark.parametrize(("ranges", "cut"), [(True, 0), (False, 100_000)])
async def test_a_transfer_that_never_gets_on(
    root: Path, hub: Hub, environ: dict[str, str], ranges: bool, cut: int
) -> None:
    hub.ranges = ranges
    hub.cuts.extend([cut] * 20)
    await refused(root, environ, DownloadFailed, "the connection to", "failed", "try again")
    assert len(hub.requests("GET", cdn=True)) == 1 + len(PAUSES)


async def test_each_try_asks_the_hub_for_a_new_link(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.cuts.append(100_000)
    hub.cdn_refusals.append((503, {}))
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).digest == DIGEST
    assert len([one for one in hub.requests("GET", cdn=False) if "/resolve/" in one.path]) == 3


async def test_other_bytes_than_the_hub_told_are_set_aside(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    hub.corrupt = True
    wrong = sha256(bytes(len(CONTENT))).hexdigest()
    said = (wrong, DIGEST, f"set aside in {root / 'quarantine'}", "Ask again")
    await refused(root, environ, ChecksumMismatch, *said)
    assert (root / "quarantine" / wrong).exists()
    hub.corrupt = False
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).digest == DIGEST


async def test_more_bytes_than_were_promised(root: Path, hub: Hub, environ: dict[str, str]) -> None:
    hub.more = b"more"
    await refused(root, environ, DownloadFailed, "sent more than it said")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "apache-2.0"}, "apache-2.0"),
        ({"license": "other", "license_name": "tiny-community"}, "tiny-community"),
        ({"license": "other"}, "other"),
        ({"license": ["mit", "bsd"]}, "mit, bsd"),
        ({"license": 7}, ""),
        ({"license": ["mit", 7]}, ""),
        ({}, ""),
        (None, ""),
        ("nonsense", ""),
    ],
)
async def test_the_licence_is_that_of_the_card(
    root: Path, hub: Hub, environ: dict[str, str], card: object, licence: str
) -> None:
    hub.repos[REPO].card = card
    with store_of(root, environ) as store:
        assert (await store.fetch(SOURCE)).licence == licence
    with store_of(root, environ) as store:
        cached = store.cached(SOURCE)
        assert cached is not None
        assert cached.licence == licence, "it is kept"


async def test_a_licence_that_is_not_told_keeps_nobody_waiting(
    root: Path, hub: Hub, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.store.hub_client.LICENCE_WAIT", 0.1)
    hub.telling.clear()
    with store_of(root, environ) as store:
        file = await asyncio.wait_for(store.fetch(SOURCE), 10)
    assert (file.digest, file.licence) == (DIGEST, "")


async def test_a_disk_that_is_too_small_is_found_before_the_transfer(
    root: Path, hub: Hub, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=len(CONTENT))
    monkeypatch.setattr("modelyard.store.source.shutil.disk_usage", lambda folder: free)
    await refused(root, environ, DiskFull, "needs 17.1 MB, 0.3 MB are free", "make room")


async def test_a_stop_ends_a_transfer_that_stands_still(
    root: Path, hub: Hub, environ: dict[str, str]
) -> None:
    """Long before the ten seconds after which a silent connection is given up."""
    hub.flowing.clear()
    with store_of(root, environ) as store:
        task = asyncio.create_task(store.fetch(SOURCE))
        await until(hub.stalled.is_set)
        clock = asyncio.get_running_loop().time
        before = clock()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert clock() - before < 5
        assert nothing_kept(root)
        hub.flowing.set()
        assert (await store.fetch(SOURCE)).digest == DIGEST


# -- texts and settings ----------------------------------------------------------------------------------

SHAPE = "is not hf://ORG/REPO[@REVISION][/path/in/repo]"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("hf://org/repo/file.gguf", None),
        ("hf://org/repo.v2@refs/pr/1/a/b/file.gguf", None),
        ("hf://org/repo@v1/model-00001-of-00001.gguf", None),
        ("hf://repo/file.gguf", SHAPE),
        ("hf://org/repo", None),
        ("hf://org/repo@v1/folder/", None),
        ("hf://org", SHAPE),
        ("hf://org/repo@/file.gguf", SHAPE),
        ("hf://org/-repo/file.gguf", SHAPE),
        ("hf://datasets/org/repo/file.gguf", f"{SHAPE}; only model repositories are known, without a prefix"),
        ("hf://org/re--po/file.gguf", "has a repository 'org/re--po' that cannot exist: no --, .. or .git"),
        ("hf://org/repo/../file.gguf", "has a revision or a path that is not one inside a repository"),
        ("hf://org/repo@..%2Fx/file.gguf", "has a revision or a path that is not one inside a repository"),
        ("hf://org/repo//file.gguf", "has a revision or a path that is not one inside a repository"),
    ],
)
def test_what_is_wrong_with_a_text(source: str, problem: str | None) -> None:
    assert HubFiles({}).problem(source) == problem


def test_an_endpoint_that_is_no_address() -> None:
    problem = HubFiles({"HF_ENDPOINT": "hub.example"}).problem(SOURCE)
    assert problem is not None
    assert "HF_ENDPOINT is no http:// or https:// address" in problem


def test_settings_have_the_hubs_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    default = HubSettings.read({})
    assert default == HubSettings("https://huggingface.co", tmp_path / ".cache/huggingface/hub", None, False)
    (tmp_path / "token").write_text("hf_file\n")
    told = HubSettings.read({"HF_HOME": str(tmp_path), "HF_ENDPOINT": "https://h/", "HF_HUB_OFFLINE": "yes"})
    assert told == HubSettings("https://h", tmp_path / "hub", "hf_file", True)
    told = HubSettings.read({"HF_HOME": str(tmp_path), "HF_HUB_CACHE": "/c", "HF_TOKEN": "hf_env"})
    assert (told.cache, told.token) == (Path("/c"), "hf_env")


# -- the command line ------------------------------------------------------------------------------------


def pull(folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    path = folder / "yard.yaml"
    models = f"models: {{tiny: {{engine: llamacpp, source: '{SOURCE}'}}}}\n"
    path.write_text(f"server: {{data_dir: {folder / 'data'}}}\n{models}")
    words = [sys.executable, "-m", "modelyard", "pull", "tiny", "-c", str(path)]
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=30, env={**os.environ, **environ}
    )


def test_pull_fetches_from_the_hub(tmp_path: Path, hub: Hub, environ: dict[str, str]) -> None:
    from compose.test_refused_starts import GGUF

    hub.repos[REPO].gated = True
    result = pull(tmp_path, {**environ, "HF_TOKEN": "hf_stranger"})
    assert result.returncode == 1
    assert f"accept its licence at {hub.url}/{REPO}" in result.stderr
    assert "Traceback" not in result.stderr
    hub.add(FILE, GGUF)
    result = pull(tmp_path, {**environ, "HF_TOKEN": "hf_member"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "tiny is in the cache: 1 file" in result.stdout
