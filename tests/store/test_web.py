"""Files of web servers: what servers do that is not in the book, and where they may lead."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelyard.errors import DownloadFailed, SourceForbidden, SourceNotFound
from modelyard.store import Store, WebFiles
from modelyard.store.addresses import Guard
from modelyard.store.pace import Pace, retry_after
from modelyard.store.pins import Pins
from modelyard.store.source import shown
from store.front import Front, Reply, front_of
from store.origins import LOCAL, Files
from waiting import until

CONTENT = random.Random(6).randbytes(900_000)
DIGEST = sha256(CONTENT).hexdigest()
PIECE = 200_000


@pytest.fixture
def files() -> Files:
    return Files({"tiny.gguf": CONTENT})


@pytest.fixture
def front(files: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    monkeypatch.setattr("modelyard.store.transfer.PIECE", PIECE)
    with front_of(files.web) as front:
        yield front


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def store_of(root: Path, guard: Guard = LOCAL, pauses: tuple[float, ...] = (0.0, 0.0)) -> closing[Store]:
    return closing(Store(root, [WebFiles(guard, Pace(3, pauses=pauses))]))


async def fetched(root: Path, source: str, guard: Guard = LOCAL) -> bytes:
    with store_of(root, guard) as store:
        return (await asyncio.wait_for(store.fetch(source), 20)).path.read_bytes()


async def test_a_server_without_ranges(root: Path, front: Front, files: Files) -> None:
    files.ranges = False
    front.cuts.append(300_000)
    assert await fetched(root, f"{front.url}/tiny.gguf") == CONTENT
    assert front.most_busy == 1


async def test_a_server_without_ranges_that_lies_about_the_length(
    root: Path, front: Front, files: Files
) -> None:
    files.ranges = False
    front.lie = 1000
    with pytest.raises(DownloadFailed, match="failed"):
        await fetched(root, f"{front.url}/tiny.gguf")


async def test_parts_belong_together_by_the_date_of_the_file(root: Path, front: Front, files: Files) -> None:
    files.validator = "Last-Modified"
    front.cuts.append(50_000)
    assert await fetched(root, f"{front.url}/tiny.gguf") == CONTENT
    assert front.sent == len(CONTENT) + 1


async def test_parts_that_nothing_holds_together_are_not_joined(
    root: Path, front: Front, files: Files
) -> None:
    """Not even after a cut: the file may be another one."""
    files.validator = ""
    front.cuts.extend([50_000, 400_000])
    assert await fetched(root, f"{front.url}/tiny.gguf") == CONTENT
    assert [one.range for one in front.parts if one.sent == len(CONTENT)] == [None]


async def test_that_they_cannot_be_joined_is_no_failure(root: Path, front: Front, files: Files) -> None:
    files.validator = ""
    with store_of(root, pauses=()) as store:
        assert (await store.fetch(f"{front.url}/tiny.gguf")).digest == DIGEST


async def test_a_digest_holds_parts_together(root: Path, front: Front, files: Files) -> None:
    files.validator = ""
    assert await fetched(root, f"{front.url}/tiny.gguf#sha256={DIGEST}") == CONTENT
    assert len([one for one in front.parts if one.range]) > 3


async def test_a_file_that_changes_while_it_is_fetched(root: Path, front: Front, files: Files) -> None:
    """Another file of the same size takes its place half way: it comes whole, or not at all."""
    other = CONTENT[::-1]
    front.flowing.clear()
    with store_of(root) as store:
        task = asyncio.create_task(store.fetch(f"{front.url}/tiny.gguf"))
        await until(lambda: front.busy)
        files.contents["tiny.gguf"] = other
        front.flowing.set()
        assert (await asyncio.wait_for(task, 20)).path.read_bytes() == other


@pytest.mark.parametrize("careless", [False, True])
async def test_a_file_that_changed_between_two_tries(
    root: Path, front: Front, files: Files, careless: bool
) -> None:
    """Also where the server does not mind which file was meant."""
    if careless:
        front.backend = lambda method, path, headers: files.web(
            method, path, {name: value for name, value in headers.items() if name != "if-range"}
        )
    front.cuts.extend([100_000, *[0] * 20])
    with store_of(root) as store:
        with pytest.raises(DownloadFailed):
            await store.fetch(f"{front.url}/tiny.gguf")
        front.cuts.clear()
        files.contents["tiny.gguf"] = CONTENT[::-1]
        assert (await store.fetch(f"{front.url}/tiny.gguf")).path.read_bytes() == CONTENT[::-1]


async def test_a_file_that_changes_all_the_time(root: Path, front: Front, files: Files) -> None:
    count = iter(range(10**6))

    def web(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        files.etags["tiny.gguf"] = f'"{next(count)}"'
        return files.web(method, path, headers)

    front.backend = web
    with pytest.raises(DownloadFailed, match="changes while it is fetched"):
        await fetched(root, f"{front.url}/tiny.gguf")


async def test_a_refusal_does_not_wait_for_other_connections(root: Path, front: Front, files: Files) -> None:
    """One part is refused for good while the others stand still."""

    def web(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        if headers.get("range", "").startswith(f"bytes={PIECE}-"):
            return 403, {}, b""
        return files.web(method, path, headers)

    front.backend = web
    front.flowing.clear()
    before = asyncio.get_running_loop().time()
    with pytest.raises(SourceForbidden):
        await fetched(root, f"{front.url}/tiny.gguf")
    assert asyncio.get_running_loop().time() - before < 10


async def test_a_wait_that_is_asked_for(root: Path, front: Front) -> None:
    front.refusals.append((429, {"Retry-After": "1"}))
    before = asyncio.get_running_loop().time()
    assert await fetched(root, f"{front.url}/tiny.gguf") == CONTENT
    assert asyncio.get_running_loop().time() - before >= 1
    front.refusals.append((503, {"Retry-After": "3600"}))
    with pytest.raises(DownloadFailed, match="try again in 3600 s") as caught:
        await fetched(root, f"{front.url}/tiny.gguf?other")
    assert caught.value.retry_after == 3600


def test_a_date_to_wait_for() -> None:
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


async def test_a_web_page_is_no_file(root: Path, front: Front, files: Files) -> None:
    files.kind = "text/html; charset=utf-8"
    with pytest.raises(SourceNotFound, match=r"sends a web page \(text/html; charset=utf-8\), not a file"):
        await fetched(root, f"{front.url}/tiny.gguf")


async def test_what_is_sent_packed_is_not_taken(root: Path, front: Front, files: Files) -> None:
    front.backend = lambda *asked: (200, {"Content-Encoding": "gzip"}, CONTENT)
    with pytest.raises(SourceNotFound, match="packed"):
        await fetched(root, f"{front.url}/tiny.gguf")


@pytest.mark.parametrize(
    ("status", "kind"), [(401, SourceForbidden), (404, SourceNotFound), (418, SourceNotFound)]
)
async def test_refusals(root: Path, front: Front, status: int, kind: type[Exception]) -> None:
    front.backend = lambda *asked: (status, {}, b"")
    with pytest.raises(kind, match=f"status {status}"):
        await fetched(root, f"{front.url}/tiny.gguf")
    assert len(front.asked) == 1


# -- where it leads --------------------------------------------------------------------------------------


async def test_what_is_not_public_is_refused(root: Path, front: Front) -> None:
    for guard in (Guard(), Guard(["10.0.0.0/8"])):
        with pytest.raises((SourceForbidden, SourceNotFound), match=r"store\.allow_private"):
            await fetched(root, f"{front.url}/tiny.gguf", guard)
        with pytest.raises(SourceForbidden, match=r"leads to 127\.0\.0\.1, which is a loopback address"):
            await fetched(root, front.url.replace("http:", "https:"), guard)
    assert not front.asked


def led_to(front: Front, files: Files, address: str, *, always: bool = False) -> None:
    def web(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        if always or "led" not in path:
            return 302, {"Location": address}, b""
        return files.web(method, path, headers)

    front.backend = web


async def test_a_redirect_is_followed_without_what_is_for_its_host_alone(
    root: Path, front: Front, files: Files
) -> None:
    host = front.url.removeprefix("http://")
    led_to(front, files, f"http://localhost:{host.partition(':')[2]}/led/tiny.gguf?signature=secret")
    assert (
        await fetched(root, f"http://ada:hunter%322@{host}/tiny.gguf", Guard(["127.0.0.1", "localhost"]))
        == CONTENT
    )
    basic = f"Basic {b64encode(b'ada:hunter22').decode()}"
    assert {("led" in one.path, one.headers.get("authorization")) for one in front.asked} == {
        (False, basic),
        (True, None),
    }
    assert all("@" not in one.headers["host"] for one in front.asked)


async def test_a_redirect_stays_on_the_way(root: Path, front: Front, files: Files) -> None:
    led_to(front, files, "/led/tiny.gguf")
    assert await fetched(root, front.url.replace("://", "://ada:x@") + "/tiny.gguf") == CONTENT
    assert all(one.headers.get("authorization") for one in front.asked)


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [
        ("https://169.254.169.254/latest/meta-data/", SourceForbidden, "leads to 169.254.169.254"),
        (
            "http://[::ffff:10.0.0.1]/",
            SourceForbidden,
            "leads on to http://::ffff:10.0.0.1, which is not encrypted",
        ),
        ("http://169.254.169.254/latest/", SourceForbidden, "is not encrypted, and a link-local address"),
        ("https://[64:ff9b::10.0.0.1]/", SourceForbidden, "a private address"),
        ("file:///etc/passwd", SourceForbidden, "no https:// address"),
        ("gopher://127.0.0.1/", SourceForbidden, "no https:// address"),
        ("/again", DownloadFailed, "without an end"),
    ],
)
async def test_a_redirect_that_leads_astray(
    root: Path, front: Front, files: Files, address: str, kind: type[Exception], said: str
) -> None:
    led_to(front, files, address, always=True)
    with pytest.raises(kind, match=said.replace("[", "\\[")):
        await fetched(root, f"{front.url}/tiny.gguf", Guard(["127.0.0.1"]))
    assert len(front.asked) <= 8


async def test_a_name_that_means_something_else_the_next_time(
    root: Path, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is what is connected to: DNS is asked once for a connection."""
    real = socket.getaddrinfo
    answers = iter(["127.0.0.1"])

    def getaddrinfo(host: str, port: int, *rest: int, **more: int) -> object:
        if host != "rebind.test":
            return real(host, port, *rest, **more)
        address = next(answers, "169.254.169.254")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = front.url.rpartition(":")[2]
    with pytest.raises(SourceForbidden, match="rebind"):
        await fetched(root, f"http://rebind.test:{port}/tiny.gguf")
    assert {one.headers["host"] for one in front.asked} == {f"rebind.test:{port}"}


async def test_no_proxy_is_asked(root: Path, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    assert await fetched(root, f"{front.url}/tiny.gguf") == CONTENT


async def test_passwords_and_queries_are_not_shown(root: Path, front: Front) -> None:
    source = f"{front.url}/none?token=hunter2".replace("://", "://ada:hunter2@")
    for url in (source, source.replace(front.url.rpartition(":")[2], "9/none?token=hunter2")):
        with pytest.raises((SourceNotFound, DownloadFailed)) as caught:
            await fetched(root, url)
        assert "hunter2" not in caught.value.message
        assert "127.0.0.1" in caught.value.message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("https://u:p@host/a?k=v#sha256=1", "https://****@host/a?…#sha256=1"),
        ("https://host/a@b", "https://host/a@b"),
        ("hf://org/repo@main/a", "hf://org/repo@main/a"),
        ("/models/a?b", "/models/a?b"),
    ],
)
def test_what_is_shown_of_a_source(source: str, said: str) -> None:
    assert shown(source) == said


# -- TLS -------------------------------------------------------------------------------------------------


@contextmanager
def tls_server(folder: Path) -> Iterator[tuple[int, Path, list[str | None]]]:
    """One with a certificate for models.test: its port, the certificate, and the names it was asked by."""
    key, certificate, names = folder / "key", folder / "certificate", list[str | None]()
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=a -addext subjectAltName=DNS:models.test"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda stream, name, _: names.append(name)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"file")

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1], certificate, names
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


async def test_a_certificate_is_for_the_name_whatever_the_address(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real("127.0.0.1" if host.endswith(".test") else host, *rest, **more),
    )
    with tls_server(tmp_path) as (port, certificate, names):
        with pytest.raises(DownloadFailed, match="certificate verify failed"):
            await fetched(root, f"https://models.test:{port}/a")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        names.clear()
        assert await fetched(root, f"https://models.test:{port}/a") == b"file"
        assert set(names) == {"models.test"}
        with pytest.raises(DownloadFailed, match=r"other\.test"):
            await fetched(root, f"https://other.test:{port}/a")


# -- texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("https://host/file.gguf", None),
        (f"https://host/file.gguf#sha256={'a' * 64}", None),
        ("https:///file", "is not https://HOST[:PORT]/path"),
        ("https://[::1/file", "is not https://HOST[:PORT]/path"),
        ("https://u:hunter2/word@host/file", "/ and @ in a password %2F and %40"),
        ("https://host/my file", "a space is written %20"),
        ("https://host:99999/file", "is not https://HOST[:PORT]/path"),
        ("https://host/file#part", "a # in a name is written %23"),
        ("https://host/file#sha256=abc", "has a sha256 that is not 64 digits"),
        ("https://host/file#md5=abc", "has a # that no sha256=HEX follows"),
        ("http://host/file", "is not encrypted"),
    ],
)
def test_what_is_wrong_with_a_text(source: str, problem: str | None) -> None:
    found = WebFiles().problem(source)
    assert (found is None) if problem is None else problem in (found or "")
    assert "hunter2" not in (found or "")


def test_pins_come_back_as_they_were() -> None:
    pins = Pins(sha256="a" * 64, etag='"x&y=#"', size="12")
    assert Pins.split(pins.onto("https://host/a")) == ("https://host/a", pins)


def test_what_sources_need_is_imported_for_a_fetch_alone() -> None:
    code = """
import sys
import modelyard.cli, modelyard.compose
from modelyard.config import StoreSetting
from modelyard.store import sources_of
for source in sources_of(StoreSetting()):
    for scheme in source.schemes:
        source.problem(f"{scheme}://a.b/c/d")
assert not {"obstore", "httpcore", "certifi"} & set(sys.modules), set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, env=os.environ)
