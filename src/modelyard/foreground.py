"""A yard in the foreground of a process: it listens until a signal says that it is enough.

Called by the command line. It owns the signals and the garbage collector's settings; `compose` does the rest.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import structlog
import uvloop

from modelyard import compose
from modelyard.config import Config

log = structlog.get_logger(__name__)

GC_THRESHOLDS = (10_000, 20, 50)  # requests leave no cycles behind, so there is little to find


def serve(
    config: Config,
    origin: compose.Origin | None = None,
    *,
    on_ready: Callable[[compose.Yard], None] | None = None,
) -> int:
    """Run until SIGINT or SIGTERM: the first drains for `server.drain_grace`, the second stops at once.
    SIGHUP has the configuration read again from its `origin`, unless it says that the terminal was closed:
    then it ends the run as SIGTERM does.

    Returns the exit code. Raises ConfigErrors before anything is started.
    """
    return uvloop.run(_serve(config, origin, on_ready))


async def _serve(
    config: Config, origin: compose.Origin | None, on_ready: Callable[[compose.Yard], None] | None
) -> int:
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    ends_with_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()  # no nohup
    reload = asyncio.Event()

    def on_hangup() -> None:
        if ends_with_terminal and not _has_terminal():
            on_signal()
        else:
            reload.set()

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    yard = await compose.build(config, origin, reload)
    try:
        address = await yard.start()
        _settle_garbage_collector()
        log.info("listening", address=str(address), models=len(yard.names.all()), reaped=len(yard.reaped))
        if not yard.names.all():
            log.warning("no_models", message="no model is configured: name some under `models:`")
        if on_ready is not None:
            on_ready(yard)
        await first.wait()
        _tell_what_is_awaited(yard)
        await _drain(yard, second)
    finally:
        await yard.close()
    return 0


def _has_terminal() -> bool:
    """Whether there is a terminal whose end would be the end of this process."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _tell_what_is_awaited(yard: compose.Yard) -> None:
    """One line on stderr, beside the log: whoever pressed Ctrl-C sees why the prompt does not come back."""
    running = len(yard.driver.scheduler.state.leases)
    awaited = f"{running} running request{'s' * (running != 1)}" if running else "the models to leave"
    grace = yard.config.server.drain_grace
    with suppress(OSError, ValueError, AttributeError):  # without a stderr nobody is there to be told
        sys.stderr.write(f"modelyard: waiting up to {grace:g} s for {awaited}; Ctrl-C again stops now\n")
        sys.stderr.flush()


def _settle_garbage_collector() -> None:
    """What was made until now stays: have no collection look at it again. A full one over all imported
    modules would hold every stream up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _drain(yard: compose.Yard, enough: asyncio.Event) -> None:
    """Stop in order, until `enough` is said. Raises what went wrong with that."""
    draining = asyncio.create_task(yard.stop(yard.config.server.drain_grace))
    cut = asyncio.create_task(enough.wait())
    try:
        await asyncio.wait({draining, cut}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        draining.cancel()
        cut.cancel()
        await asyncio.wait({draining, cut})
    if not draining.cancelled():
        draining.result()
