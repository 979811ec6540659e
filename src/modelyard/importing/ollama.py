"""Import of Ollama's model store: its models, served by llama.cpp from where their files lie.

Called by the command line. A store has `manifests/HOST/NAMESPACE/NAME/TAG`, JSON that names layers, and
`blobs/sha256-…`, the layers themselves. Nothing in it is changed or copied. A model that is broken is named,
and the others are imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelyard.engines.gguf import GgufHeader, read_header
from modelyard.errors import BadGguf, ConfigError
from modelyard.importing.imported import Imported
from modelyard.importing.llama_server import ALL_LAYERS

SERVICE_STORE = Path("/usr/share/ollama/.ollama/models")
"""Where the service of Ollama's installer keeps models."""
LARGEST_JSON = 2**20
MOST_MODELS = 10_000
_CHUNK = 2**20
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_LAYER = "application/vnd.ollama.image."
_DEFAULT = ("registry.ollama.ai", "library")
_OWN_KINDS = frozenset({"gptoss", "mllama", "qwen25vl"})
"""Architectures as Ollama's own engine names them; llama.cpp knows these models by other names."""
_SENSES = ("v.", "a.", "mm.")
"""How the tensors of a model's eyes and ears are called; llama.cpp takes them from a file of their own."""
_LISTED = {
    "messages": "a conversation to begin with is sent by the client here",
    "system": "a system prompt is sent by the client here",
}
_AT_START: dict[str, tuple[str, Callable[[Any], object]]] = {
    "num_ctx": ("context", int),
    "num_thread": ("threads", int),
    "num_batch": ("batch", int),
    "use_mmap": ("mmap", bool),
}


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    digest: str
    size: int


class _Broken(Exception):
    """A model of the store that cannot be imported, with the reason."""


def default_store(environ: Mapping[str, str]) -> Path:
    """Where Ollama keeps its models: OLLAMA_MODELS, or in the user's home."""
    named = environ.get("OLLAMA_MODELS", "").strip().strip("\"'")
    return Path(named) if named else Path(environ.get("HOME") or Path.home()) / ".ollama" / "models"


def read(store: Path, *, verify: bool = False) -> Imported:
    """What a model store holds. With `verify`, the digest of every file that is used is computed: it reads
    them whole. Raises ConfigError when it is no store, is empty, or cannot be read."""
    store = Path(os.path.abspath(store))
    return _Store(store, verify).imported()


class _Store:
    def __init__(self, store: Path, verify: bool) -> None:
        self._blobs = store / "blobs"
        self._manifests = store / "manifests"
        self._verify = verify
        self._verified: dict[str, bool] = {}
        self._result = Imported(str(store))
        self._merged: dict[str, list[str]] = {}  # by model: further names for the same files and settings

    def imported(self) -> Imported:
        result = self._result
        made: dict[str, str] = {}  # by what it is made of: the model's name
        for parts in self._names():
            result.found += 1
            name = _shown(parts)
            try:
                self._model(name, self._manifests.joinpath(*parts), made)
            except _Broken as error:
                result.leave_out(name, name, str(error))
        if not result.found:
            raise ConfigError(
                "", f"{self._manifests.parent} has no models: `ollama list` would be empty, too"
            )
        for name, names in self._merged.items():
            message = f"the same files and settings as {', '.join(names)}: one model, with aliases"
            result.note(name, message, name)
        result.models = dict(sorted(result.models.items(), key=lambda model: (model[0].count("/"), model[0])))
        return result

    def _names(self) -> Iterator[tuple[str, ...]]:
        """Host, namespace, name and tag of each manifest. Of several for one model the first names it: the
        library's before others, then the shortest, `latest` last: it is mostly another tag's."""
        if not self._manifests.is_dir():
            hint = f"; there is one at {SERVICE_STORE}" if SERVICE_STORE.is_dir() else ""
            message = f"{self._manifests.parent} is no model store of Ollama, or cannot be read{hint}"
            raise ConfigError("", f"{message}; name it with --store")
        found = []

        def unreadable(error: OSError) -> None:
            self._result.lose(str(error.filename), f"cannot be read: {error.strerror}")

        for folder, below, files in os.walk(self._manifests, onerror=unreadable):
            depth = len(Path(folder).relative_to(self._manifests).parts)
            if depth >= 3:
                below.clear()
            if depth == 3:
                parts = Path(folder).relative_to(self._manifests).parts
                found += [(*parts, tag) for tag in files if not tag.startswith(".")]
            if len(found) > MOST_MODELS:
                raise ConfigError("", f"{self._manifests} has more than {MOST_MODELS} models")
        return iter(sorted(found, key=_standing))

    def _model(self, name: str, path: Path, made: dict[str, str]) -> None:
        result = self._result
        if result.name_for(name) != name:
            raise _Broken("its name is not possible here")
        layers, config = self._manifest(path)
        if config.get("remote_host"):
            raise _Broken("it is served by another machine (a cloud model)")
        section = self._section(name, layers)
        key = json.dumps(section, sort_keys=True)
        names = [name, name.removesuffix(":latest")] if name.endswith(":latest") else [name]
        if key in made:  # the same files and settings: one model in memory
            same = made[key]
            result.found -= 1
            result.models[same].setdefault("aliases", []).extend(names)
            self._merged.setdefault(same, []).append(name)
            self._merge_remarks(name, same)
            return
        made[key] = name
        result.models[name] = section | ({"aliases": names[1:]} if names[1:] else {})

    def _merge_remarks(self, name: str, same: str) -> None:
        """What is told of one name is told of the model that it is an alias of now, if it is not already."""
        remarks = self._result.remarks
        told = {
            (remark.path.removeprefix(same), remark.message) for remark in remarks if remark.model == same
        }
        self._result.remarks = [
            replace(remark, model=same) if remark.model == name else remark
            for remark in remarks
            if remark.model != name or (remark.path.removeprefix(name), remark.message) not in told
        ]

    def _section(self, name: str, layers: list[_Layer]) -> dict[str, Any]:
        by_kind: dict[str, list[_Layer]] = {}
        for layer in layers:
            by_kind.setdefault(layer.kind, []).append(layer)
        models = by_kind.pop("model", [])
        if len(models) != 1:
            what = "its weights are no GGUF file" if not models else "its weights are in several files"
            raise _Broken(f"{what}; llama.cpp takes one")
        source = self._blob(models[0])
        header = _header(source)
        _check_kind(header)
        parameters: dict[str, Any] = {}
        for layer in by_kind.pop("params", []):
            parameters |= self._parameters(name, self._json(layer))
        if adapters := by_kind.pop("adapter", []):
            parameters["lora"] = [{"source": str(self._gguf(layer))} for layer in adapters]
        for projector in by_kind.pop("projector", []):
            parameters["mmproj"] = str(self._gguf(projector))
        if f"{header.fields.get('general.architecture')}.pooling_type" in header.fields:
            parameters["embedding"] = True
        self._rest(name, by_kind)
        section: dict[str, Any] = {"source": str(source), "engine": "llamacpp"}
        return section | ({"parameters": parameters} if parameters else {})

    def _rest(self, name: str, by_kind: dict[str, list[_Layer]]) -> None:
        """Layers that have no counterpart."""
        by_kind.pop("license", None)  # a text for people, which stays where it is
        if by_kind.pop("template", None) or by_kind.pop("prompt", None):
            message = "the chat template in the model's file is used; Ollama's is in another language"
            self._result.note(f"{name}: template", message, name)
        for kind in by_kind:
            self._result.lose(
                f"{name}: {kind}", _LISTED.get(kind, "is a kind of layer that is not known"), name
            )

    def _parameters(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """The parameters that decide how a model is loaded. All others belong to a request here."""
        found: dict[str, Any] = {}
        for option, value in given.items():
            path = f"{name}: {option}"
            if option in _AT_START and isinstance(value, int):
                parameter, kind = _AT_START[option]
                found[parameter] = kind(value)
            elif option == "num_gpu" and isinstance(value, int):
                if 0 <= value < ALL_LAYERS:  # else all of them, where there is a GPU
                    found["gpu_layers"] = value
            elif option in {"main_gpu", "num_gpu", "use_mlock", "low_vram", "numa", "f16_kv", "vocab_only"}:
                if value:
                    self._result.lose(path, "is not set per model; see `devices` and `parameters`", name)
            else:
                self._result.lose(path, "is sent with each request here", name)
        return found

    # -- files ---------------------------------------------------------------------------------------------

    def _manifest(self, path: Path) -> tuple[list[_Layer], dict[str, Any]]:
        manifest = _object(path, "its manifest")
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not layers:
            config = manifest.get("config")
            layer = _layer(config) if isinstance(config, dict) else None
            if layer is not None and (remote := self._json(layer)).get("remote_host"):
                return [], remote
            raise _Broken(f"its manifest {path} names no layers")
        config = manifest.get("config")
        about = self._json(_layer(config)) if isinstance(config, dict) and config.get("digest") else {}
        return [_layer(layer) for layer in layers], about

    def _blob(self, layer: _Layer) -> Path:
        """The file of a layer, whole. Raises _Broken."""
        path = self._blobs / f"sha256-{layer.digest}"
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _Broken(f"{path} is missing ({error.strerror}); `ollama pull` brings it back") from None
        if layer.size and size != layer.size:
            raise _Broken(f"{path} has {size} of {layer.size} bytes; `ollama pull` mends it")
        if self._verify and not self._is_right(path, layer.digest):
            raise _Broken(f"{path} is not what its name says (sha256); `ollama pull` mends it")
        return path

    def _is_right(self, path: Path, digest: str) -> bool:
        if digest not in self._verified:
            computed = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        computed.update(chunk)
            except OSError as error:
                raise _Broken(f"{path} cannot be read: {error.strerror}") from None
            self._verified[digest] = computed.hexdigest() == digest
        return self._verified[digest]

    def _gguf(self, layer: _Layer) -> Path:
        path = self._blob(layer)
        _header(path)
        return path

    def _json(self, layer: _Layer) -> dict[str, Any]:
        return _object(self._blob(layer), f"its layer {layer.kind}")


def _standing(parts: tuple[str, ...]) -> tuple[object, ...]:
    """What sorts the names of one model, the one to call it by first."""
    *_, model, tag = parts
    return _shown(parts).count("/"), len(model), parts[:3], tag == "latest", len(tag), tag


def _shown(parts: tuple[str, ...]) -> str:
    """A model's name as Ollama shows it: without the parts that go without saying."""
    host, namespace, model, tag = parts
    if (host, namespace) == _DEFAULT:
        return f"{model}:{tag}"
    return f"{namespace}/{model}:{tag}" if host == _DEFAULT[0] else f"{host}/{namespace}/{model}:{tag}"


def _object(path: Path, what: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_JSON + 1)
        value = json.loads(text) if len(text) <= LARGEST_JSON else None
    except OSError as error:
        raise _Broken(f"{what} {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _Broken(f"{what} {path} is no JSON object")
    return value


def _layer(value: Any) -> _Layer:
    given = value if isinstance(value, dict) else {}
    kind, digest, size = given.get("mediaType"), given.get("digest"), given.get("size")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if not isinstance(kind, str) or match is None:
        raise _Broken("its manifest has a layer without a type or a digest")
    return _Layer(kind.removeprefix(_LAYER), match[1].lower(), size if isinstance(size, int) else 0)


def _header(path: Path) -> GgufHeader:
    try:
        return read_header(path)
    except BadGguf as error:
        raise _Broken(error.message) from None
    except OSError as error:
        raise _Broken(f"{path} cannot be read: {error.strerror}") from None


def _check_kind(header: GgufHeader) -> None:
    """Raises _Broken for a file that only Ollama's own engine loads."""
    architecture = str(header.fields.get("general.architecture", ""))
    if architecture in _OWN_KINDS:
        raise _Broken(f"its file is made for Ollama's own engine ({architecture}); fetch one for llama.cpp")
    if any(tensor.name.startswith(_SENSES) for tensor in header.tensors):
        raise _Broken(
            "its file holds its vision or audio part, which llama.cpp takes from a file of its own; "
            "fetch both for llama.cpp"
        )
