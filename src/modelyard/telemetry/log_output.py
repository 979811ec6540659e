"""Where the log goes: stderr, as lines for people on a terminal, as JSON elsewhere.

Called once by whatever owns the process: the command line, and an embedded server in a program that has not
set up structlog itself. Tracebacks are plain: they must not print local variables (keys), nor walk them.
A line that cannot be written (the disk is full, the reader of the pipe has left) is lost: serving goes on.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog


class Sink:
    """A text stream whose `write` and `flush` never raise; without a stream it takes everything."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()


def configure(*, quiet: bool = False) -> None:
    """Set the log up for this process; `quiet` keeps warnings and errors only."""
    stream: TextIO | None = sys.stderr  # None when this process was started without one
    if stream is not None and stream.isatty():
        shown: list[structlog.typing.Processor] = [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        shown = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if quiet else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Sink(stream))),
    )
