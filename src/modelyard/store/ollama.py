"""Models of Ollama's registry: `ollama://[HOST/][NAMESPACE/]MODEL[:TAG]`, by default of registry.ollama.ai.

Used by `cache`. A manifest names layers by their digests; the one that holds the weights is fetched, or used
where it lies in the user's own store of Ollama. `ollama+http://` asks without encryption, a host that the
operator allows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Self

from modelyard.errors import DownloadFailed, SourceNotFound, StoreError
from modelyard.store.addresses import Guard
from modelyard.store.head import beginning_of
from modelyard.store.pace import LARGEST, BadAnswer, Pace, Patience
from modelyard.store.pins import Pins
from modelyard.store.source import LICENCE_WAIT, Exact, Source, Watch, licence_of
from modelyard.store.transfer import download

if TYPE_CHECKING:
    from modelyard.store.http_client import HttpClient

REGISTRY = "registry.ollama.ai"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_LICENCE_LAYER = "application/vnd.ollama.image.license"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_LONGEST_MANIFEST = 2**20
_LONGEST_HEAD = 2**12  # of a licence, whose first line is wanted
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_HOST = r"(?:localhost|[A-Za-z0-9.-]+\.[A-Za-z0-9-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?|[A-Za-z0-9-]+:\d{1,5}"
_SOURCE = re.compile(rf"ollama(\+http)?://(?:({_HOST})/)?(?:({_NAME})/)?({_NAME})(?::({_NAME}))?")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model at a registry. `text` is the source without its pins."""

    registry: str
    repository: str
    tag: str
    text: str
    pins: Pins

    @classmethod
    def parse(cls, source: str) -> Self:
        """Raises ValueError with what is wrong with the text."""
        base, pins = Pins.split(source)
        match = _SOURCE.fullmatch(base)
        if match is None:
            raise ValueError("is not ollama://[HOST/][NAMESPACE/]MODEL[:TAG]")
        plain, host, namespace, model, tag = match.groups()
        registry = f"http{'' if plain else 's'}://{host or REGISTRY}"
        return cls(registry, f"{namespace or 'library'}/{model}", tag or "latest", base, pins)

    @property
    def manifest(self) -> str:
        return f"{self.registry}/v2/{self.repository}/manifests/{self.tag}"

    @property
    def blob(self) -> str:
        """Where the weights of a resolved model are."""
        return self.layer(self.pins.sha256)

    def layer(self, digest: str) -> str:
        return f"{self.registry}/v2/{self.repository}/blobs/sha256:{digest}"


class OllamaModels(Source):
    """See `source.Source`. `environ` says where the user's own store of Ollama is (default: this
    process's)."""

    schemes: ClassVar[tuple[str, ...]] = ("ollama", "ollama+http")
    resumes: ClassVar[bool] = True

    def __init__(
        self,
        guard: Guard | None = None,
        pace: Pace | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._guard = guard or Guard()
        self._pace = pace or Pace()
        self._environ = os.environ if environ is None else environ

    def problem(self, source: str) -> str | None:
        try:
            model = OllamaModel.parse(source)
        except ValueError as error:
            return str(error)
        if model.registry.startswith("http://") and not self._guard.allows_any:
            return "is not encrypted; write ollama://, or name its host in `store.allow_private`"
        return None

    def resolve(self, source: str, watch: Watch) -> Exact:
        from modelyard.store.http_client import HttpClient  # noqa: PLC0415

        model = OllamaModel.parse(source)
        with HttpClient(self._guard, watch, 1) as client, watch.on_stop(client.abort):
            patience = Patience(watch, self._pace.pauses)
            manifest = patience.insist(lambda: _manifest(client, model, watch))
        digest, size = _weights(manifest, watch.source)
        if model.pins.sha256 not in {"", digest}:
            raise SourceNotFound(
                f"{watch.source}: {model.text} is sha256 {digest} now; name that, or another tag"
            )
        exact = replace(model.pins, sha256=digest, size=str(size)).onto(model.text)
        return Exact(exact, digest, self._licence(manifest, model, watch))

    @contextmanager
    def head(self, source: str, watch: Watch) -> Iterator[BinaryIO]:
        from modelyard.store.http_client import HttpClient, HttpRemote  # noqa: PLC0415

        model = OllamaModel.parse(source)
        if path := self._own(model.pins):
            with path.open("rb") as file:
                yield file
            return
        with (
            HttpClient(self._guard, watch, 1) as client,
            beginning_of(HttpRemote(client, model.blob, watch), watch) as file,
        ):
            yield file

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        from modelyard.store.http_client import HttpClient, HttpRemote  # noqa: PLC0415

        model = OllamaModel.parse(source)
        if path := self._own(model.pins):
            return path
        with HttpClient(self._guard, watch, self._pace.connections) as client:
            return download(
                HttpRemote(client, model.blob, watch),
                folder,
                watch,
                self._pace,
                identity=source,
                size=model.pins.bytes,
                pinned=True,
            )

    def _licence(self, manifest: object, model: OllamaModel, watch: Watch) -> str:
        """What the first of the licences begins with; "" where there is none, or it does not come soon."""
        from modelyard.store.http_client import HttpClient  # noqa: PLC0415

        head = b""
        for digest, _ in _layers(manifest, _LICENCE_LAYER)[:1]:
            soon = Watch(watch.source, min(LICENCE_WAIT, watch.left()))
            with (
                suppress(StoreError),
                HttpClient(self._guard, soon, 1, LICENCE_WAIT) as client,
                watch.on_stop(client.abort),
                client.get(model.layer(digest), {}) as reply,
            ):
                for chunk in reply.chunks if reply.status == 200 else ():
                    head += chunk
                    if len(head) > _LONGEST_HEAD:
                        break
        return licence_of(head[:_LONGEST_HEAD].decode(errors="replace"))

    def _own(self, pins: Pins) -> Path | None:
        """The weights in the user's own store, if they are whole there."""
        home = Path(self._environ.get("HOME") or "~").expanduser()
        store = Path(self._environ.get("OLLAMA_MODELS") or home / ".ollama" / "models")
        blob = store / "blobs" / f"sha256-{pins.sha256}"
        try:
            return blob if blob.stat().st_size == pins.bytes else None
        except OSError:
            return None


def _manifest(client: HttpClient, model: OllamaModel, watch: Watch) -> object:
    from modelyard.store.http_client import refusal  # noqa: PLC0415

    with client.get(model.manifest, {"Accept": _MANIFEST}) as reply:
        if reply.status == 404:
            raise SourceNotFound(
                f"{watch.source}: {reply.host} has no model {model.repository}:{model.tag}; check both names"
            )
        if reply.status != 200:
            raise refusal(watch.source, reply)
        text = b""
        for chunk in reply.chunks:
            text += chunk
            if len(text) > _LONGEST_MANIFEST:
                break
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DownloadFailed(f"{watch.source}: {reply.host} answers with what is no manifest") from None


def _weights(manifest: object, source: str) -> tuple[str, int]:
    """Digest and size of the layer with the weights."""
    found = _layers(manifest, _MODEL_LAYER)
    if len(found) != 1:
        many = "several parts, which are not fetched together" if found else "no weights in one file"
        raise SourceNotFound(f"{source}: the model has {many}; name another tag")
    if not 0 <= found[0][1] <= LARGEST:
        raise BadAnswer(
            f"{source}: its manifest speaks of {str(found[0][1])[:50]} bytes, which no file has; name "
            "another tag"
        )
    return found[0]


def _layers(manifest: object, kind: str) -> list[tuple[str, int]]:
    """Digests and sizes of the layers of a kind."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    return [
        (digest[1], layer["size"])
        for layer in (layers if isinstance(layers, list) else [])
        if isinstance(layer, dict)
        and layer.get("mediaType") == kind
        and (digest := _DIGEST.fullmatch(str(layer.get("digest"))))
        and type(layer.get("size")) is int
    ]
