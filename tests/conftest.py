"""What every test starts with."""

from __future__ import annotations

import pytest
import structlog


@pytest.fixture(autouse=True)
def plain_log() -> None:
    """Log lines go to standard output, whatever an earlier test set up. Tracebacks are plain: the default
    one walks every local variable, which takes minutes for a whole server."""
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ]
    )
