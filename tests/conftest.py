"""Where CI says what it has set up (PASSEL_REQUIRE), a test that is skipped has failed."""

from __future__ import annotations

import os

import pytest

_IS_CI = bool(os.environ.get("PASSEL_REQUIRE"))
_skipped: list[str] = []


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _IS_CI and report.skipped:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped.append(f"{report.nodeid}: {why}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test was skipped, or is expected to fail, which is the same for who relies on it."""
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A whole module was skipped."""
    _note(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was set up and did not run has failed."""
    if _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name them."""
    for each in _skipped:
        terminalreporter.write_line(f"skipped, which CI does not allow (PASSEL_REQUIRE): {each}")
