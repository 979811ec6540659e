"""Where the log goes: stderr, as lines for people on a terminal, as JSON elsewhere.

Called once by whatever owns the process: the command line, and an embedded server in a program that has not
set up structlog itself. Tracebacks are plain: they must not print local variables (keys), nor walk them.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure(*, quiet: bool = False) -> None:
    """Set the log up for this process; `quiet` keeps warnings and errors only."""
    if sys.stderr.isatty():
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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
