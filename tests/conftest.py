"""What holds for all tests: where CI says what it has set up (PASSEL_REQUIRE), one that is skipped
has failed, and only tests of clusters start Ray.
"""

from __future__ import annotations

import os

import pytest

_IS_CI = bool(os.environ.get("PASSEL_REQUIRE"))
_skipped: list[str] = []
#: Who needs a cluster makes one. Left alone, Ray makes one for whoever asks it anything.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"


@pytest.fixture(autouse=True)
def _no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a test start one by mistake: only those that are marked may."""
    if any(request.node.get_closest_marker(mark) for mark in ("cluster", "e2e", "notebooks")):
        return
    import ray

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("only a test of a cluster may start Ray")

    monkeypatch.setattr(ray, "init", refuse)


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
