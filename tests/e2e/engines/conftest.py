"""The contract suite's table, printed behind its tests."""

from __future__ import annotations

import re

import pytest

_TEST = re.compile(r"engines/test_(?:contract|translating)\.py::test_(\w+)\[(.+)\]$")
_WORDS = {"passed": "ok", "failed": "FAILED", "error": "FAILED", "skipped": "skipped"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows: dict[str, dict[str, str]] = {}
    said: dict[str, None] = {}
    for report in _reports(terminalreporter):
        match = _TEST.search(report.nodeid)
        if match is None:
            continue
        test, stand = match[1].replace("_", " "), match[2]
        row = rows.setdefault(test, {})
        if row.get(stand) != "FAILED":  # a test may end well, and what is behind it may not
            row[stand] = _WORDS[report.outcome]
        if report.skipped and isinstance(report.longrepr, tuple):
            said[f"{stand}: {report.longrepr[2].removeprefix('Skipped: ')}"] = None
        said.update({f"{stand}: {name} {value}": None for name, value in report.user_properties})
    if not rows:
        return
    stands = sorted({stand for row in rows.values() for stand in row})
    width = max(map(len, rows))
    terminalreporter.section("engines, by what each has to do")
    for test, row in {"": {stand: stand for stand in stands}, **rows}.items():
        cells = (row.get(stand, "-").ljust(max(len(stand), 7)) for stand in stands)
        terminalreporter.write_line(f"{test:{width}}  {'  '.join(cells)}".rstrip())
    for line in sorted(said):
        terminalreporter.write_line(line)


def _reports(reporter: pytest.TerminalReporter) -> list[pytest.TestReport]:
    """Of all tests, in the order in which these stand."""
    ended = [one for word in _WORDS for one in reporter.stats.get(word, [])]
    return sorted(
        (one for one in ended if isinstance(one, pytest.TestReport)), key=lambda one: one.location[1] or 0
    )
