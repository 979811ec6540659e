"""Traces: rows of time and tokens -> jobs for the simulated world. Read by `modelyard.sim.__main__` alone."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random

from modelyard.sim.world import Job


@dataclass(frozen=True, slots=True)
class Row:
    """One request: seconds since the first one, and tokens."""

    at: float
    context: int
    generated: int


def read_trace(path: Path, limit: int) -> list[Row]:
    """The first `limit` rows of a gzipped CSV: TIMESTAMP, ContextTokens, GeneratedTokens."""
    rows: list[Row] = []
    first: datetime | None = None
    with gzip.open(path, "rt", newline="") as file:
        for record in csv.DictReader(file):
            moment = datetime.fromisoformat(record["TIMESTAMP"][:26])
            first = first or moment
            at = (moment - first).total_seconds()
            rows.append(Row(at, int(record["ContextTokens"]), int(record["GeneratedTokens"])))
            if len(rows) == limit:
                break
    return rows


def service_seconds(row: Row) -> float:
    """How long it holds a slot: 0.2 ms per context token and 10 ms per generated token."""
    return 0.0002 * row.context + 0.010 * row.generated


def assign(rows: list[Row], versions: list[str], *, seed: int, skew: float, stretch: float) -> list[Job]:
    """Give each request a version by Zipf's law (weight 1 / rank^skew); times are stretched by `stretch`."""
    weights = [1.0 / rank**skew for rank in range(1, len(versions) + 1)]
    names = Random(seed).choices(versions, weights, k=len(rows))
    return [Job(row.at * stretch, name, service_seconds(row)) for row, name in zip(rows, names, strict=True)]
