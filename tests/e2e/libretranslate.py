"""LibreTranslate itself, in the environment of `scripts/libretranslate-env`, with our trained models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.command_line import free_port
from e2e.served import running
from modelyard import languages
from modelyard.servers.translation import packed

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "translation" / "models"
ENVIRONMENT = ROOT / ".cache" / "libretranslate"
PAIRS = ("en-fr", "fr-de")
ABSENT = "" if any(ENVIRONMENT.glob("made-*")) else f"no {ENVIRONMENT}: run scripts/libretranslate-env"
# A model of spaCy's for where sentences end would be fetched; an empty one does it by their marks.
_EMPTY = "import spacy, sys; [spacy.blank('xx').to_disk(folder) for folder in sys.argv[1:]]"


class LibreTranslate:
    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self._process = process

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)


@contextmanager
def libretranslate(folder: Path, *options: str) -> Iterator[LibreTranslate]:
    """A server that translates our pairs, and from the first to the last over the one between."""
    packages = folder / "argos-translate" / "packages"
    if not packages.exists():
        made = [_package(packages, pair) for pair in PAIRS]
        words = [str(ENVIRONMENT / "bin" / "python"), "-c", _EMPTY, *(str(one / "spacy") for one in made)]
        subprocess.run(words, check=True, timeout=120)
    port = free_port()
    own = {name: str(folder) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    words = [str(ENVIRONMENT / "bin" / "libretranslate"), "--port", str(port), "--disable-web-ui", *options]
    url = f"http://127.0.0.1:{port}"
    with running(words, f"{url}/health", folder, {**own, "ARGOS_CHUNK_TYPE": "SPACY"}) as process:
        yield LibreTranslate(url, process)


def _package(packages: Path, pair: str) -> Path:
    """A model as Argos Translate has it installed."""
    source, target = pair.split("-")
    package = packages / f"translate-{source}_{target}-1_0"
    model = package / "model"
    model.mkdir(parents=True)
    converted = package / "converted"
    packed.pack(MODELS / pair, converted, "float32")
    packed.unpack(converted, model)
    converted.replace(model / "model.bin")
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "add_source_eos": True}))
    (package / "sentencepiece.model").write_bytes((MODELS / pair / "source.spm").read_bytes())
    told = {"package_version": "1.0", "argos_version": "1.9", "from_code": source, "to_code": target}
    names = {"from_name": languages.name(source), "to_name": languages.name(target)}
    (package / "metadata.json").write_text(json.dumps(told | names))
    return package
