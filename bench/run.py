"""`make bench`: every number that the documentation states, measured here and now.

Run as `python bench/run.py [request-path] [swap] [warm-up] [many-models] [engines] [sleep]
[scheduler]`; without a name all parts run, one after the other. Tables go to standard output, raw values to
bench/out/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import beside_engines
import many_models
import request_path
import sleep
import swap
import warm_up

PARTS = ("request-path", "swap", "warm-up", "many-models", "engines", "sleep", "scheduler")
HERE = Path(__file__).resolve().parent


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    parts = arguments.part or PARTS
    if "request-path" in parts:
        names = [name.strip() for name in arguments.contestants.split(",")]
        request_path.measure(names, arguments.rounds, arguments.seconds, arguments.seed)
    if "swap" in parts:
        for kind in arguments.engines.split(","):
            swap.measure(kind, arguments.pairs, arguments.seed)
    if "warm-up" in parts:
        warm_up.measure(arguments.starts, arguments.seed)
    if "many-models" in parts:
        many_models.measure(arguments.rounds, arguments.seconds, arguments.seed)
    if "engines" in parts:
        beside_engines.measure(arguments.rounds)
    if "sleep" in parts:
        sleep.measure(arguments.rounds)
    if "scheduler" in parts:
        subprocess.run([sys.executable, str(HERE / "scheduler.py")], check=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("part", nargs="*", choices=PARTS, help="what to measure; default: everything")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of the request path, of engines, of sleep")
    parser.add_argument("--seconds", type=float, default=3.0, help="per closed loop of the request path")
    parser.add_argument("--contestants", default=",".join(request_path.NAMES))
    parser.add_argument("--pairs", type=int, default=20, help="of swaps, per kind of engine")
    parser.add_argument("--engines", default="fake,llamacpp", help="of the swaps")
    parser.add_argument("--starts", type=int, default=20, help="of the warm-up, for each of its kinds")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
