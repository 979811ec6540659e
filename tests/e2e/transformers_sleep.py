"""Run by test_transformers with the interpreter of the engines: a model that sleeps and wakes, as JSON.

    transformers_sleep.py PARAMETERS-JSON START

START is the time at which the caller began to start this process. Times are from there, or from the order to
wake, to the scores of a prompt.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any


def main() -> None:
    start = float(sys.argv[2])
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from modelyard.servers.transformers.loading import load
    from modelyard.servers.transformers.parameters import parse

    parameters = parse([sys.argv[1]])
    model = load(parameters)
    generator: Any = model.generator
    prompt = torch.tensor([model.words.encode("The sea is")])

    def scores() -> torch.Tensor:
        with torch.inference_mode():
            whole: torch.Tensor = generator._model(prompt).logits
        return whole

    before = scores()
    cold, ready = time.time() - start, _anonymous()
    generator.close()
    first = model.sleeper.sleep()
    asleep = _anonymous()
    start = time.time()
    moved = model.sleeper.wake()
    generator.open()
    after = scores()
    wake = time.time() - start
    generator.close()
    own = _own_again()
    again, _ = model.sleeper.sleep(), model.sleeper.wake()
    print(
        json.dumps(
            {
                "weights": moved[0],
                "cold": cold,
                "first sleep": first[1],
                "sleep": again[1],
                "wake": wake,
                "read": moved[1],
                "ready": ready,
                "asleep": asleep,
                "awake": own,
                "written": _written(parameters.sleep_folder),
                "same": torch.equal(before, after),
                "still": torch.equal(before, scores()),
            }
        ),
        flush=True,
    )
    os._exit(0)


def _own_again() -> int:
    """The private memory of this process once it has copied what it woke with."""
    for thread in threading.enumerate():
        if thread.name == "weights":
            thread.join()
    return _anonymous()


def _written(folder: str) -> int:
    """Bytes of the files without a name that this process has in a folder."""
    files = (int(name) for name in os.listdir("/proc/self/fd"))
    return sum(os.fstat(file).st_size for file in files if _path(file).startswith(folder))


def _path(file: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{file}")
    except OSError:
        return ""


def _anonymous() -> int:
    """The private memory of this process, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
