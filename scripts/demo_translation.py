"""Shows translation with the trained models of examples/translation: three pairs, and who is loaded for them.

Run by `make demo-translation`. It starts a server of its own on a free port, and stops it in the end.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "examples" / "translation" / "modelyard.yaml"
ASKED = (
    ("en", "fr", "The black horse is in the city."),
    ("fr", "de", "Le bus arrive à trois heures moins dix."),
    ("es", "de", "Debemos pintar nuestro perro azul porque mi árbol es grande."),
)
DEADLINE = 60.0
MODELYARD = (sys.executable, "-m", "modelyard")


def main() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as data, Path(data, "log").open("wb") as log:
        words = ("serve", "-c", str(CONFIG), "--port", str(port), "--only", "translation")
        environment = {**os.environ, "XDG_DATA_HOME": data}
        server = subprocess.Popen([*MODELYARD, *words], env=environment, stdout=log, stderr=log)
        try:
            if not _listens(url, server):
                print(Path(data, "log").read_text(), file=sys.stderr)
                return 1
            _show(url)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(DEADLINE)
    return 0


def _listens(url: str, server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + DEADLINE
    while server.poll() is None and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health"):
            return True
        time.sleep(0.1)
    return False


def _show(url: str) -> None:
    for source, target, text in ASKED:
        body = json.dumps({"q": text, "source": source, "target": target}, ensure_ascii=False)
        _run("curl", "-s", f"{url}/translate", "-d", body)
        print()
        _run(*MODELYARD, "ps", "--url", url)
    try:
        from libretranslatepy import LibreTranslateAPI  # noqa: PLC0415
    except ImportError:
        return
    source, target, text = ASKED[0]
    print(f"\n>>> LibreTranslateAPI({url!r}).translate({text!r}, {source!r}, {target!r})")
    print(repr(LibreTranslateAPI(url).translate(text, source, target)), flush=True)


def _run(*words: str) -> None:
    shown = ("modelyard", *words[len(MODELYARD) :]) if words[: len(MODELYARD)] == MODELYARD else words
    print(f"\n$ {shlex.join(shown)}", flush=True)
    subprocess.run(words, check=True)


if __name__ == "__main__":
    sys.exit(main())
