"""Servers that answer what no server should: it is said at once what they did wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import DownloadFailed, StoreError
from modelyard.store import OllamaModels, Store, WebFiles, http_client
from modelyard.store.pace import BadAnswer, Pace, retry_after
from modelyard.store.source import Watch
from store.origins import LAYER, LOCAL, source_of
from store.raw_server import raw_server

HUGE = 10**30
OK = b"HTTP/1.1 200 OK\r\n"
LED = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n"
PART = b"HTTP/1.1 206 Partial Content\r\n"


def head(first: bytes, **headers: str) -> bytes:
    lines = (f"{name.replace('_', '-')}: {value}\r\n".encode("latin-1") for name, value in headers.items())
    return first + b"".join(lines) + b"\r\n"


async def failure(root: Path, scheme: str, answer: bytes, pauses: tuple[float, ...] = ()) -> DownloadFailed:
    """What comes of a fetch from a server that answers this to everything."""
    asked = []

    def answered(path: str) -> Iterable[bytes]:
        asked.append(path)
        return [answer]

    with raw_server(answered) as url:
        sources = [WebFiles(LOCAL, Pace(2, pauses=pauses)), OllamaModels(LOCAL, Pace(2, pauses=pauses), {})]
        with closing(Store(root, sources)) as store, pytest.raises(DownloadFailed) as caught:
            await asyncio.wait_for(store.fetch(source_of(scheme, url, "tiny.gguf")), 20)
    if isinstance(caught.value, BadAnswer):
        assert len(asked) <= 8, "to ask again does not help"
    assert len(caught.value.message) < 1000
    return caught.value


@pytest.mark.parametrize("scheme", ["http", "ollama"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (head(LED, Location="http://h:99999/"), "127.0.0.1 leads to no address that can be asked"),
        (head(LED, Location="http://h:port/"), "no address that can be asked"),
        (head(LED, Location="http://\xfc..de/"), "no address that can be asked"),
        (head(LED, Location="http://[::1/"), "no address that can be asked"),
        (head(LED, Location="//[/"), "no address that can be asked"),
        (head(LED, Location=f"https://{'a' * 60_000}/"), "no address that can be asked"),
        (head(LED, Location=f"https://{'a' * 64}.de/"), "cannot be found"),
        (head(LED), r"without saying where \(status 302 without Location\)"),
        (head(LED, Location=""), "without saying where"),
        (head(LED, Location="/again"), r"without an end \(8 redirects\)"),
        (head(OK, Content_Length="-5"), r"failed \(bad Content-Length\)"),
        (head(OK, Content_Length=str(HUGE)), r"failed \(bad Content-Length\)"),
        (head(OK, X="a" * 3_000_000), "failed"),
        (b"\x00" * 200_000, "failed"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "failed"),
        (b"", "failed"),
    ],
)
async def test_what_is_no_answer(tmp_path: Path, scheme: str, answer: bytes, said: str) -> None:
    caught = await failure(tmp_path, scheme, answer)
    with pytest.raises(DownloadFailed, match=said):
        raise caught


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (head(OK, Content_Length=str(10**19)), r"speaks of 1000\d* bytes \(Content-Length\)"),
        (head(PART, Content_Range=f"bytes 0-0/{HUGE}", Content_Length="1"), r"speaks of .*\(Content-Range\)"),
        (head(PART, Content_Range=f"bytes 0-0/{'9' * 5000}", Content_Length="1"), "speaks of"),
        (head(PART, Content_Range="bytes 5-2/10", Content_Length="1"), "contradicts itself"),
        (head(PART, Content_Range="bytes 0-9/5", Content_Length="10"), "contradicts itself"),
        (head(PART, Content_Range="bytes 0-0/*", Content_Length="1"), "does not say which bytes it sends"),
        (head(PART, Content_Range="bytes */5", Content_Length="1"), "does not say which bytes it sends"),
        (head(PART, Content_Length="1"), "does not say which bytes it sends"),
        (head(PART, Content_Range="bytes 3-3/5", Content_Length="1") + b"1", "other bytes than asked for"),
    ],
)
async def test_sizes_that_cannot_be(tmp_path: Path, answer: bytes, said: str) -> None:
    with pytest.raises(DownloadFailed, match=said):
        raise await failure(tmp_path, "http", answer)


@pytest.mark.parametrize("size", [-5, HUGE, 10**400])
async def test_a_manifest_whose_weights_have_a_size_that_cannot_be(tmp_path: Path, size: int) -> None:
    layer = {"mediaType": f"{LAYER}.model", "digest": f"sha256:{'0' * 64}", "size": size}
    answer = head(OK, Content_Type="text/plain") + json.dumps({"layers": [layer]}).encode()
    with pytest.raises(DownloadFailed, match=r"manifest speaks of .* bytes, which no file has"):
        raise await failure(tmp_path, "ollama", answer)


async def test_what_cannot_be_is_not_asked_for_again(tmp_path: Path) -> None:
    assert isinstance(
        await failure(tmp_path, "http", head(LED, Location="/again"), pauses=(0.0, 0.0)), BadAnswer
    )


async def test_an_answer_that_never_begins_ends_with_the_deadline(tmp_path: Path) -> None:
    def without_end(path: str) -> Iterable[bytes]:
        return itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")

    with raw_server(without_end) as url:
        source = WebFiles(LOCAL, Pace(2, pauses=()))
        with (
            closing(Store(tmp_path, [source], deadline=0.5)) as store,
            pytest.raises(DownloadFailed, match="passed its deadline"),
        ):
            await asyncio.wait_for(store.fetch(f"{url}/tiny.gguf"), 20)


@pytest.mark.parametrize(
    "text", ["9" * 400, "Wed, 21 Oct 99999 07:28:00 GMT", "1 Jan 2020 0:0:0 +99999999999999"]
)
def test_a_wait_that_cannot_be(text: str) -> None:
    assert retry_after({"retry-after": text}) in {None, float("inf")}


numbers = st.sampled_from(
    ["0", "1", "4", "5", "-5", "+5", "5.0", "", "\xb2", str(2**63), str(HUGE), "9" * 5000]
)
values = {
    "Content-Length": numbers,
    "Content-Range": st.one_of(
        st.builds("bytes {}-{}/{}".format, numbers, numbers, numbers),
        st.builds("bytes */{}".format, numbers),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
    ),
    "Location": st.one_of(
        st.sampled_from(
            ["/again", "http://127.0.0.1:99999/", "//", "?", "http:", "https://\xfc..de", "http://[::1"]
        ),
        st.builds("http://127.0.0.1:{}/".format, numbers),
        st.text("[]:@/%?#\\ \x7f\xfc.-0", max_size=20).map(lambda text: f"http://{text}/"),
    ),
    "ETag": st.sampled_from(['"1"', "1", ""]),
    "Retry-After": numbers,
    "Content-Type": st.sampled_from(["text/html", "application/octet-stream", "\xff"]),
    "Content-Encoding": st.sampled_from(["gzip", "identity"]),
    "Transfer-Encoding": st.sampled_from(["chunked", "gzip", "chunked, chunked"]),
}
answers = st.builds(
    lambda status, headers, body: (
        b"HTTP/1.1 %d X\r\n%b\r\n%b"
        % (status, "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1"), body)
    ),
    st.sampled_from([100, 200, 200, 206, 206, 301, 302, 304, 404, 416, 429, 503]),
    st.lists(
        st.sampled_from(sorted(values)).flatmap(lambda name: st.tuples(st.just(name), values[name])),
        max_size=5,
    ),
    st.sampled_from([b"", b"1", b"12345", b"5\r\n12345\r\n0\r\n\r\n", b"zz\r\n"]),
)


def test_whatever_it_answers_is_a_file_or_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = http_client._trust()
    monkeypatch.setattr(http_client, "_trust", lambda: trust)  # to read it takes longer than all the rest
    answer = b""
    with raw_server(lambda path: [answer]) as url:

        @settings(max_examples=200, deadline=None)
        @given(answers)
        def fetched(given: bytes) -> None:
            nonlocal answer
            answer = given
            source, watch = WebFiles(LOCAL, Pace(2, pauses=())), Watch("a", 10.0)
            with tempfile.TemporaryDirectory() as folder, suppress(StoreError):
                exact = source.resolve(f"{url}/tiny.gguf", watch)
                assert source.fetch(exact.source, Path(folder), watch).is_file()

        fetched()
