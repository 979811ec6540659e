"""Which file of a hub's repository a short name such as `org/repo:Q4_K_M` means.

Used by `llama_server` alone. llama.cpp asks the hub; here only the caches on this machine are looked into,
where what was served before lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from modelyard.store.hub import HubSettings

DEFAULT_TAG = "Q4_K_M"


def file_of(repo: str, tag: str, environ: Mapping[str, str]) -> str | None:
    """The source of the one file that it can mean; None when there is none or more than one."""
    found = {source for name, source in _files(repo, environ) if _means(name, tag or DEFAULT_TAG)}
    return found.pop() if len(found) == 1 else None


def _means(name: str, tag: str) -> bool:
    """Whether a file's name says that it holds a model in this quantization."""
    lower = name.lower()
    return tag.lower() in lower and lower.endswith(".gguf") and "mmproj" not in lower and "-of-0" not in lower


def _files(repo: str, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and sources of the repository's files that are here."""
    snapshots = HubSettings.read(environ).cache / f"models--{repo.replace('/', '--')}" / "snapshots"
    for path in sorted(snapshots.glob("*/**/*.gguf")):
        within = "/".join(path.relative_to(snapshots).parts[1:])
        yield within, f"hf://{repo}/{within}"
    own = environ.get("LLAMA_CACHE") or f"{environ.get('HOME') or Path.home()}/.cache/llama.cpp"
    prefix = f"{repo.replace('/', '_')}_"
    for path in sorted(Path(own).glob("*.gguf")):
        if path.name.startswith(prefix):
            yield path.name.removeprefix(prefix), str(path)
