"""Files and folders of model repositories on the Hugging Face Hub: `hf://ORG/REPO[@REVISION][/path/in/repo]`.

Used by `cache`. This module reads the text of a source and what the environment says of the hub; whatever
needs the package huggingface_hub is in `hub_client`, which is imported when a file is wanted and not before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Self
from urllib.parse import quote, unquote

from modelyard.store.licences import Licences
from modelyard.store.pace import Pace
from modelyard.store.source import Exact, Source, Watch

if TYPE_CHECKING:
    from modelyard.store.hub_client import HubClient

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
# A revision with a slash is written with %2F, but for the refs of the hub itself (as huggingface_hub has it).
_SOURCE = re.compile(rf"hf://({_NAME}/{_NAME})(?:@(refs/(?:pr/\d+|convert/[\w.-]+)|[^/@]+))?(?:/(.*))?")
_FILES = (".gguf", ".safetensors", ".bin", ".json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Not models; they would read as organisations.
_OTHER_KINDS = frozenset({"models", "datasets", "spaces", "kernels", "buckets"})
_SHAPE = "is not hf://ORG/REPO[@REVISION][/path/in/repo]"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at a revision: a branch, a tag or a commit. The path of a folder ends with
    `/`, and is empty for the whole repository."""

    repo: str
    revision: str
    path: str

    @classmethod
    def parse(cls, source: str) -> Self:
        """Raises ValueError with what is wrong with the text."""
        match = _SOURCE.fullmatch(source)
        if match is None or (not match[3] and match[1].endswith(_FILES)):  # a file, and no ORG
            raise ValueError(_SHAPE)
        repo, revision, path = match[1], unquote(match[2] or "main"), match[3] or ""
        if repo.split("/")[0] in _OTHER_KINDS:
            raise ValueError(f"{_SHAPE}; only model repositories are known, without a prefix")
        if "--" in repo or ".." in repo or repo.endswith(".git"):
            raise ValueError(f"has a repository {repo!r} that cannot exist: no --, .. or .git")
        if any(part in {"", ".", ".."} for part in f"{revision}/{path}".removesuffix("/").split("/")):
            raise ValueError("has a revision or a path that is not one inside a repository")
        return cls(repo, revision, path)

    @property
    def is_folder(self) -> bool:
        return self.path[-1:] in {"", "/"}

    @property
    def is_settled(self) -> bool:
        """Whether the revision is a commit, which never moves."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> HubFile:
        """The same file at a commit."""
        return replace(self, revision=commit)

    def __str__(self) -> str:
        return f"hf://{self.repo}@{quote(self.revision, safe='')}/{self.path}"


@dataclass(frozen=True, slots=True)
class HubSettings:
    """What the environment says of the hub, by the names that huggingface_hub gives its variables. `token` is
    None when there is none; `cache` is the user's own cache of hub files, which is read and never written."""

    endpoint: str
    cache: Path
    token: str | None
    offline: bool

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Costs the reading of the token's file where HF_TOKEN is not set."""
        base = environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = _path(environ.get("HF_HOME") or f"{base}/huggingface")
        cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")
        if not token:
            token = _read(_path(environ.get("HF_TOKEN_PATH") or str(home / "token")))
        return cls(
            endpoint=endpoint_of(environ),
            cache=_path(cache) if cache else home / "hub",
            token=token.strip() or None,
            offline=any(_is_true(environ.get(name)) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")),
        )


def endpoint_of(environ: Mapping[str, str]) -> str:
    """The address of the hub, without a slash at its end."""
    return (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class HubFiles(Source):
    """See `source.Source`. `environ` is where the hub's variables are read, at each use (default: this
    process's)."""

    schemes: ClassVar[tuple[str, ...]] = ("hf",)
    resumes: ClassVar[bool] = True

    def __init__(self, environ: Mapping[str, str] | None = None, pace: Pace | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._pace = pace or Pace()
        self._licences = Licences()

    def problem(self, source: str) -> str | None:
        try:
            HubFile.parse(source)
        except ValueError as error:
            return str(error)
        if not endpoint_of(self._environ).startswith(("http://", "https://")):
            return "cannot be fetched: HF_ENDPOINT is no http:// or https:// address; mend it or unset it"
        return None

    def is_folder(self, source: str) -> bool:
        return HubFile.parse(source).is_folder

    def resolve(self, source: str, watch: Watch) -> Exact:
        return self._client(watch).resolve(HubFile.parse(source))

    def head(self, source: str, watch: Watch) -> AbstractContextManager[BinaryIO]:
        return self._client(watch).head(HubFile.parse(source))

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        return self._client(watch).fetch(HubFile.parse(source), folder)

    def _client(self, watch: Watch) -> HubClient:
        # Late: a third of a second that a start without such sources does not pay.
        from modelyard.store.hub_client import HubClient  # noqa: PLC0415

        return HubClient(HubSettings.read(self._environ), watch, self._pace, self._licences)


def _path(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _is_true(text: str | None) -> bool:
    return text is not None and text.upper() in {"1", "ON", "YES", "TRUE"}
