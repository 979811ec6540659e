"""The log never stops what it tells of."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest
import structlog

from modelyard.telemetry import log_output


class Refusing(io.StringIO):
    """A stream whose descriptor takes nothing: a pipe without a reader, a full disk."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.asked = 0

    def write(self, text: str) -> int:
        self.asked += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EAGAIN])
def test_a_stream_that_takes_nothing_costs_lines_only(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    stream = Refusing(number)
    monkeypatch.setattr(sys, "stderr", stream)
    log_output.configure()
    structlog.get_logger().error("lost")
    assert stream.asked


def test_a_closed_stream_costs_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log_output.configure()
    stream.close()
    structlog.get_logger().error("lost")


def test_a_process_without_stderr_logs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    log_output.configure()
    structlog.get_logger().error("lost")


def test_lines_are_json_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_output.configure()
    structlog.get_logger().error("told", model="a")
    assert '"model": "a"' in capsys.readouterr().err
