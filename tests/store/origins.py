"""Each kind of source that resumes, on servers of this machine that can be made to fail.

Run as a program it fetches one file: `origins.py SCHEME URL ROOT SOURCE`, and prints the digest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import md5, sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelyard.store import HubFiles, ObjectFiles, OllamaModels, Source, Store, WebFiles, transfer
from modelyard.store.addresses import Guard
from modelyard.store.pace import Bandwidth, Pace
from store.front import Front, Reply, part_of
from store.s3_server import BUCKET, S3Server

COMMIT = "c" * 40
LAYER = "application/vnd.ollama.image"
LOCAL = Guard(["127.0.0.0/8"])
SCHEMES = ("http", "ollama", "s3", "gs", "hf")


@dataclass
class Files:
    """What a server has, by name; and how it tells one content from another."""

    contents: dict[str, bytes] = field(default_factory=dict)
    validator: str = "ETag"  # or Last-Modified, or nothing
    ranges: bool = True
    kind: str = "application/octet-stream"
    etags: dict[str, str] = field(default_factory=dict)
    licence: bytes = b""  # of Ollama's models; b"": the layer is not there

    def etag(self, name: str) -> str:
        return self.etags.get(name) or f'"{md5(self.contents[name]).hexdigest()}"'

    def web(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """A plain web server; also the XML interface of Google's buckets."""
        name = unquote(urlsplit(path).path).rpartition("/")[2]
        if name not in self.contents:
            return 404, {}, b"<html>no</html>"
        if headers.get("if-match") not in {None, self.etag(name)}:
            return 412, {}, b""
        known = {
            "ETag": {"ETag": self.etag(name)},
            "Last-Modified": {"Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"},
        }
        said = {"Content-Type": self.kind, **known.get(self.validator, {})}
        if path.startswith("/bucket/"):
            said["Last-Modified"] = "Sat, 21 Nov 2026 10:00:00 GMT"
        return part_of(self.contents[name], headers if self.ranges else {}, said)

    def ollama(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """A registry of Ollama's kind: `tiny/NAME:latest`."""
        *_, name, kind, last = path.split("/")
        if name not in self.contents:
            return 404, {}, b""
        content = self.contents[name]
        digest = f"sha256:{sha256(content).hexdigest()}"
        if kind == "manifests":
            layers = [
                {
                    "mediaType": f"{LAYER}.license",
                    "digest": f"sha256:{sha256(self.licence).hexdigest()}",
                    "size": len(self.licence),
                },
                {"mediaType": f"{LAYER}.model", "digest": digest, "size": len(content)},
            ]
            return 200, {"Content-Type": "text/plain"}, json.dumps({"layers": layers}).encode()
        if self.licence and last == f"sha256:{sha256(self.licence).hexdigest()}":
            content = self.licence
        elif last != digest:
            return 404, {}, b""
        return part_of(content, headers, {})

    def hub(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """A hub with one repository."""
        name = unquote(path).rpartition("/")[2]
        known = {"X-Repo-Commit": COMMIT}
        if name not in self.contents:
            return 404, {**known, "X-Error-Code": "EntryNotFound"}, b""
        digest = sha256(self.contents[name]).hexdigest()
        known |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(self.contents[name]))}
        if method == "HEAD":
            return 200, {**known, "Content-Length": str(len(self.contents[name]))}, b""
        return part_of(self.contents[name], headers, {**known, "ETag": f'"{digest}"'})


@dataclass
class Origin:
    """One kind of source and its server."""

    scheme: str
    front: Front
    put: Callable[[str, bytes], object]

    def source(self, name: str = "tiny.gguf") -> str:
        return source_of(self.scheme, self.front.url, name)

    def sources(self, folder: Path, pace: Pace) -> list[Source]:
        return [source_at(self.scheme, self.front.url, folder, pace)]


def source_of(scheme: str, url: str, name: str) -> str:
    host = url.removeprefix("http://")
    return {
        "http": f"{url}/files/{name}",
        "ollama": f"ollama+http://{host}/tiny/{name}",
        "s3": f"s3://{BUCKET}/folder/{name}",
        "gs": f"gs://bucket/gs/{name}",
        "hf": f"hf://tiny/model/{name}",
    }[scheme]


def source_at(scheme: str, url: str, folder: Path, pace: Pace) -> Source:
    """The source that asks this server. `folder` is for settings that must lie in a file."""
    if scheme == "s3":
        return ObjectFiles(S3Server(url).setting, pace)
    if scheme == "gs":
        account = folder / "account.json"
        empty = dict.fromkeys(("private_key", "private_key_id", "client_email"), "")
        account.write_text(json.dumps({"gcs_base_url": url, "disable_oauth": True, **empty}))
        os.environ["GOOGLE_SERVICE_ACCOUNT"] = str(account)
        return ObjectFiles(pace=pace)
    if scheme == "hf":
        return HubFiles({"HF_ENDPOINT": url, "HF_HOME": str(folder / "hf")}, pace)
    if scheme == "ollama":
        return OllamaModels(LOCAL, pace, {"HOME": str(folder)})
    return WebFiles(LOCAL, pace)


async def _main(scheme: str, url: str, root: Path, source: str) -> None:
    transfer._SAVE_EVERY = 0.02  # so that a short life leaves something
    transfer.PIECE = 256 * 1024
    pace = Pace(connections=3, pauses=(0.0, 0.1), bandwidth=Bandwidth())
    with closing(Store(root, [source_at(scheme, url, root.parent, pace)])) as store:
        print((await store.fetch(source)).digest, flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
