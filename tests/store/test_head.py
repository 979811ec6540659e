"""What a source says of its file before that is here: by its beginning, and no more of it than that takes."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.gguf_file import gguf
from modelyard.errors import BadFile, BadGguf, ChecksumMismatch, SourceNotFound, StoreError
from modelyard.store import Store, head
from modelyard.store.formats import Terms, look_at
from modelyard.store.pace import Bandwidth, Pace
from modelyard.store.source import Exact, Watch
from modelyard.store.transfer import Answer
from store.front import Reply, front_of, passed_on
from store.origins import SCHEMES, Files, Origin
from store.s3_server import S3Server
from waiting import until

MB = 1_000_000
WORDS = 30_000
FIELDS = {
    "general.architecture": "llama",
    "llama.context_length": 2048,
    "general.license": "mit",
    "tokenizer.ggml.tokens": [f"word {number}" for number in range(WORDS)],
    "tokenizer.ggml.scores": [1] * WORDS,
    "llama.block_count": 1,
}
TENSORS = [("blk.0.weight", (1024, 8 * 1024), 0)]
CONTENT = gguf(FIELDS, TENSORS)
HEADER = len(CONTENT) - 4 * 1024 * 8 * 1024
NAME = "tiny.gguf"
SECONDS = 20.0


@pytest.fixture
def files() -> Files:
    return Files({NAME: CONTENT})


@pytest.fixture
def origin(request: pytest.FixtureRequest, files: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """Over plain HTTP, unless a test names its scheme."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "")
    scheme = getattr(request, "param", "http")
    with ExitStack() as stack:
        if scheme == "s3":
            s3: S3Server = request.getfixturevalue("s3")
            s3.put(f"folder/{NAME}", CONTENT)
            front = stack.enter_context(front_of(passed_on(s3.url)))
        else:
            backend = {"ollama": files.ollama, "hf": files.hub}.get(scheme, files.web)
            front = stack.enter_context(front_of(backend))
        yield Origin(scheme, front, files.contents.__setitem__)


async def asked(
    folder: Path, origin: Origin, terms: Terms | None = None, seconds: float = SECONDS
) -> head.Head:
    sources = origin.sources(folder, Pace(4, Bandwidth(), (0.0, 0.0)))
    with closing(Store(folder / "store", sources)) as store:
        found = await store.ask(origin.source(), terms or Terms(), seconds)
    assert not [one for one in (folder / "store").rglob("*") if one.is_file() and one.name != "work.lock"]
    return found


@pytest.mark.parametrize("origin", SCHEMES, indirect=True)
async def test_the_beginning_tells(tmp_path: Path, origin: Origin) -> None:
    origin.front.rate = 20 * MB
    found = await asked(tmp_path, origin)
    assert found.size == len(CONTENT)
    assert found.header["general.architecture"] == "llama"
    assert found.header["llama.context_length"] == 2048
    assert found.header["vocabulary"] == WORDS
    assert found.digest in {"", sha256(CONTENT).hexdigest()}
    assert bool(found.digest) is (origin.scheme in {"hf", "ollama"})
    assert HEADER < origin.front.sent < HEADER + 12 * MB < len(CONTENT), "it was not left at the beginning"


async def test_of_a_server_without_ranges_the_beginning_is_read(
    tmp_path: Path, origin: Origin, files: Files
) -> None:
    files.ranges = False
    origin.front.rate = 20 * MB
    found = await asked(tmp_path, origin)
    assert (found.size, found.header["vocabulary"]) == (len(CONTENT), WORDS)
    assert origin.front.sent < HEADER + 20 * MB


async def test_a_file_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(CONTENT)
    with closing(Store(tmp_path / "store")) as store:
        found = await store.ask(str(path), Terms(), SECONDS)
        assert (found.size, found.header["vocabulary"]) == (len(CONTENT), WORDS)
        path.write_bytes(CONTENT[:-1000])
        with pytest.raises(BadGguf, match="are missing; fetch it again"):
            await store.ask(str(path), Terms(), SECONDS)
        with pytest.raises(SourceNotFound, match="does not exist"):
            await store.ask(str(tmp_path / "other.gguf"), Terms(), SECONDS)


async def test_safetensors(tmp_path: Path, origin: Origin) -> None:
    entry = {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}
    text = json.dumps({"a": entry}).encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(9)
    origin.put(NAME, whole)
    header = {"kind": "safetensors", "bytes": 9, "parameters": 9, "dtypes": {"U8": 9}}
    assert await asked(tmp_path, origin) == head.Head(len(whole), header=header)
    origin.put(NAME, whole[:-1])
    with pytest.raises(BadFile, match="1 are missing"):
        await asked(tmp_path, origin)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", BadFile, "an HTML or XML page"),
        (pickle.dumps([1, 2]), BadFile, "allow_pickle: true"),
        (b"", BadFile, "an empty file"),
        (CONTENT[: len(CONTENT) // 2], BadGguf, "are missing; fetch it again"),
        (CONTENT[: HEADER // 2], BadGguf, "ends within its tokenizer.ggml.tokens"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(4000), BadGguf, "more than the file can hold"),
        (struct.pack("<Q", 1 << 39) + b"{" + bytes(4000), BadFile, "claims 549755813888 bytes"),
    ],
)
@pytest.mark.parametrize("ranges", [True, False])
async def test_what_is_no_model_is_refused(
    tmp_path: Path,
    origin: Origin,
    files: Files,
    content: bytes,
    error: type[StoreError],
    said: str,
    ranges: bool,
) -> None:
    files.ranges = ranges
    origin.put(NAME, content)
    with pytest.raises(error, match=said) as caught:
        await asked(tmp_path, origin)
    assert caught.value.message.startswith(origin.source())
    assert "Sign in" not in caught.value.message


async def test_a_pickle_is_taken_where_it_may_be(tmp_path: Path, origin: Origin) -> None:
    origin.put(NAME, pickle.dumps([1, 2]))
    assert (await asked(tmp_path, origin, Terms(allow_pickle=True))).header == {}


@pytest.mark.parametrize("origin", ["hf"], indirect=True)
async def test_another_file_than_was_promised_is_refused(tmp_path: Path, origin: Origin) -> None:
    digest = sha256(CONTENT).hexdigest()
    assert (await asked(tmp_path, origin, Terms(digest))).digest == digest
    with pytest.raises(ChecksumMismatch, match=f"have sha256 {digest}, {'0' * 64} was promised"):
        await asked(tmp_path, origin, Terms("0" * 64))


async def test_a_header_that_is_too_long_is_left_alone(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "MOST", 100_000)
    assert await asked(tmp_path, origin) == head.Head(len(CONTENT))
    assert origin.front.sent < 200_000


async def test_a_server_that_is_too_slow_or_breaks_off_is_not_waited_for(
    tmp_path: Path, origin: Origin
) -> None:
    origin.front.flowing.clear()
    assert await asyncio.wait_for(asked(tmp_path, origin, seconds=4.0), 30) == head.Head()
    origin.front.flowing.set()
    await until(lambda: not origin.front.busy)
    origin.front.cuts.append(HEADER // 2)
    assert await asked(tmp_path, origin) == head.Head()
    assert (await asked(tmp_path, origin)).header["vocabulary"] == WORDS


async def test_other_bytes_than_were_asked_for_tell_nothing(tmp_path: Path, files: Files) -> None:
    """A page behind the beginning would be taken for the file."""
    files.contents[NAME] = b"<html>" + CONTENT

    def shifted(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        behind = {**headers, "range": headers["range"].replace("bytes=0-", "bytes=6-")}
        return files.web(method, path, headers if headers["range"] == "bytes=0-0" else behind)

    with front_of(shifted) as front:
        origin = Origin("http", front, lambda name, content: None)
        assert await asked(tmp_path, origin) == head.Head()


def test_a_size_that_nobody_tells() -> None:
    def of(content: bytes) -> head.Head:
        chunks = (content[at : at + 9000] for at in range(0, len(content), 9000))
        beginning = head._Beginning(Answer(0, None, "", False, chunks), Watch("x", 60))
        return head.head_of(io.BufferedReader(beginning), Exact("x"), Terms())

    assert of(CONTENT).size == 0
    assert of(CONTENT).header["vocabulary"] == WORDS
    assert of(gguf({"a": 1})).size == len(gguf({"a": 1}))
    with pytest.raises(BadGguf, match="ends within"):
        of(CONTENT[:500_000])


# -- any bytes, in any pieces ---------------------------------------------------------------------------

SMALL = gguf(
    {**FIELDS, "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [1, 2]}, [("a", (9,), 0)]
)
TEXT = json.dumps({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}).encode()
WHOLE = (SMALL, struct.pack("<Q", len(TEXT)) + TEXT + bytes(9))


def verdict(judge: Callable[[], object]) -> str:
    try:
        judge()
    except (BadFile, BadGguf) as error:
        return error.message
    return "good"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    whole=st.sampled_from(WHOLE),
    flips=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 2000),
    pieces=st.integers(1, 700),
)
def test_the_verdict_is_that_of_the_whole_file(
    whole: bytes, flips: list[tuple[int, int]], cut: int, pieces: int
) -> None:
    data = bytearray(whole[:cut])
    for at, value in flips:
        if at < len(data):
            data[at] = value
    content = bytes(data)

    def remote(size: int | None) -> head._Beginning:
        rng = random.Random(pieces)
        at, chunks = 0, []
        while at < len(content):
            step = rng.randint(0, pieces)
            chunks.append(content[at : at + step])
            at += step
        return head._Beginning(Answer(0, size, "", True, iter(chunks)), Watch("x", 60))

    right = verdict(lambda: look_at(io.BytesIO(content)))
    assert verdict(lambda: look_at(io.BufferedReader(remote(len(content))))) == right
    # Where nobody says how much there is, nothing is worse than an error.
    with suppress(BadFile, BadGguf):
        exact = Exact("x")
        head.head_of(io.BufferedReader(remote(None)), exact, Terms(allow_pickle=True))
