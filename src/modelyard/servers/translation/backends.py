"""What computes translations: the contract of the back ends. Standard library only.

A *text* is cut into *segments* (`sentences`), each goes through the model at once, in a batch with others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

BATCH_TOKENS = 2048
"""Tokens that go through a model at once, unless somebody says how many."""
BEAM_SIZE = 2
_MOST_REPLICAS = 4


def chosen(device: str, gpus: int) -> str:
    """The device that is meant, where there are so many GPUs: `auto` is the first, if there is one."""
    if device != "auto":
        return device
    return "cuda:0" if gpus else "cpu"


def shared_cores(replicas: int, threads: int) -> tuple[int, int]:
    """How many batches the CPU computes at once, by how many threads each; 0 is for what nobody said. A batch
    has few threads, where that keeps all cores busy: they wait for each other at each of many small steps."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    replicas = replicas or max(min(cores // (threads or 1), _MOST_REPLICAS), 1)
    return replicas, threads or max(cores // replicas, 1)


class OutOfMemory(Exception):
    """The device has no memory for this batch. Nothing of it was done; a smaller one may fit."""


class Broken(Exception):
    """The host had no memory for a batch, and what computes does not survive that: nothing may be run any
    more until the model is loaded anew."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text as the model takes it, with the pair's marks: `tokens` go into its encoder, `prefix`
    begins what its decoder writes. Both are texts of the model's vocabulary."""

    source: str
    target: str
    tokens: tuple[str, ...]
    prefix: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Tokens that the encoder gets: what a batch is bounded and sorted by."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Output:
    """A translated segment: its text, how many `tokens` were made for it, and the next best ones, best first.
    `whole` is False where it was cut at the bound."""

    text: str
    tokens: int
    whole: bool = True
    alternatives: tuple[str, ...] = ()


class Backend(Protocol):
    """A model in memory. `run` may be called by several threads at a time, as many as `replicas` compute at
    once; the others wait. Everything else is cheap and safe from any thread."""

    device: str
    replicas: int
    longest: int  # tokens of one segment, with its marks, and of its output

    @property
    def languages(self) -> Sequence[str]:
        """The codes of all that it reads or writes."""
        ...

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """Source and target of all that it translates."""
        ...

    def segment(self, text: str, source: str, target: str) -> Segment:
        """The text as the model takes it; it may be longer than `longest`, and must not be run then. The
        codes are two of `pairs`. Raises KeyError for others."""
        ...

    def run(
        self, batch: Sequence[Segment], *, beam_size: int = 1, max_output: int = 256, alternatives: int = 0
    ) -> list[Output]:
        """One output of each segment, in their order; the pairs may differ. It is computed as one batch:
        padded to the longest, its memory grows with length times count times beams. `max_output` tokens are
        made of each at most. Raises OutOfMemory, and Broken."""
        ...

    def close(self) -> None:
        """Give the memory back. Nothing may run any more; a second time does nothing."""
        ...
