"""What every measurement shares: CPU time of a process tree, the machine in words, medians, tables, results.

Used by the scripts of this folder. Times are seconds unless a name says otherwise.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "out"
BUILT = ROOT / ".cache" / "bench"


def cpu_seconds(pid: int, without: Path | None = None, *, alone: bool = False) -> float:
    """User and system time (utime + stime of /proc/PID/stat) of a process and (unless `alone`) its live
    descendants, except those that execute `without`."""
    total: float = 0.0
    process = psutil.Process(pid)
    for one in [process, *([] if alone else process.children(recursive=True))]:
        try:
            if without is None or Path(one.exe()) != without:
                times = one.cpu_times()
                total += float(times.user + times.system)
        except psutil.NoSuchProcess:
            continue
    return total


def machine() -> dict[str, object]:
    """Where a number was measured: CPU, cores, kernel, Python."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def median_and_spread(values: Sequence[float]) -> str:
    """`median (smallest-largest)`, rounded to what such a measurement can tell."""
    digits = 0 if abs(statistics.median(values)) >= 100 else 1
    if abs(statistics.median(values)) < 1:
        digits = 3
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def report(name: str, title: str, text: str, values: Mapping[str, object]) -> None:
    """Print a result, and keep it with the machine and the command in bench/out/NAME.json."""
    where = machine()
    command = " ".join(["python", *sys.argv])
    print(f"\n## {title}\n\n{text}\n")
    print("{cpu}, {cores} cores, Linux {kernel}, Python {python}".format(**where) + f"; `{command}`")
    OUT.mkdir(parents=True, exist_ok=True)
    content = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": where,
        **values,
    }
    (OUT / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
