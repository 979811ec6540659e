"""A process that translates, whatever computes: used by the `__main__` of the servers that do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelyard.servers import process
from modelyard.servers.translation.api import Api
from modelyard.servers.translation.backends import BATCH_TOKENS, BEAM_SIZE, Backend
from modelyard.servers.translation.batching import Batching
from modelyard.servers.translation.room import GpuMemory, HostMemory, Measured, Memory
from modelyard.servers.translation.texts import longest_output

WAIT_MS = 4


@dataclass(frozen=True)
class Options:
    """`max_batch_tokens` of source text at most go through the model at once, padding included; the first of
    a batch waits `max_wait_ms` for others. At most `max_output` tokens are made of a segment (0: what its
    length suggests). `token_bytes` is what a token in a batch may take until that was measured."""

    beam_size: int = BEAM_SIZE
    max_batch_tokens: int = BATCH_TOKENS
    max_wait_ms: int = WAIT_MS
    max_output: int = 0
    token_bytes: int = 0


async def serve(address: str, path: str, open: Callable[[], Backend], options: Options) -> int:
    """See `process.serve`; `open` loads the model, in a thread."""

    def load() -> Backend | None:
        try:
            return open()
        except ImportError as error:
            process.log(f"{error}; run `pip install 'modelyard[translation]'` for this interpreter")
        except Exception as error:  # whatever the libraries raise: it ends the process
            process.log(f"error: failed to load model: {type(error).__name__}: {error}")
        return None

    def make(failed: Callable[[str], None]) -> Api:
        return Api(lambda backend: batching(backend, options, failed))

    return await process.serve(address, path, make, load)


def batching(backend: Backend, options: Options, failed: Callable[[str], None]) -> Batching:
    """What runs a model that was loaded."""

    def limit(longest: int) -> int:
        return min(longest_output(longest), options.max_output or backend.longest)

    room = Measured(memory_of(backend.device), options.max_batch_tokens, options.token_bytes)
    wait = options.max_wait_ms / 1000
    return Batching(backend, room, limit, beam_size=options.beam_size, max_wait=wait, failed=failed)


def memory_of(device: str) -> Memory | None:
    """The memory of a back end's device; None where nothing tells."""
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return HostMemory()
    try:
        return GpuMemory(int(number) if number.isdecimal() else 0)
    except Exception as error:  # no `nvidia-ml-py`, or another maker's GPU
        process.log(f"free memory of {device} is not known ({error}): batches are bounded by tokens alone")
        return None
