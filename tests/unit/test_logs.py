"""Secrets are cut out of every line, whoever wrote it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from passel.telemetry import logs

SECRET = "c2VjcmV0LWNyZWRlbnRpYWw"


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What a process with our logging writes."""
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "aiohttp.access")}
    stream = io.StringIO()
    logs.setup("debug", stream)
    yield stream
    root.handlers[:], root.level = kept
    logging.getLogger("aiohttp.server").filters.clear()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Basic {SECRET}",
        f"headers={{'Authorization': 'Bearer {SECRET}'}}",
        f"it said bearer {SECRET} to us",
        f"GET https://cdn.test/x?X-Amz-Signature={SECRET}&y=1",
        f"GET https://cdn.test/x?token={SECRET}",
        f"http://alice:{SECRET}@registry.test/v2/",
        f'{{"access_token": "{SECRET}"}}',
        f"password={SECRET}",
    ],
)
def test_a_line_has_no_secret(output: io.StringIO, text: str) -> None:
    logging.getLogger("third.party").warning("said %s", text)
    written = output.getvalue()
    assert "third.party" in written
    assert "<redacted>" in written
    assert SECRET not in written


def test_a_traceback_has_none_either(output: io.StringIO) -> None:
    try:
        raise ValueError(f"cannot parse 'Authorization: Basic {SECRET}'")
    except ValueError:
        logging.getLogger("third.party").exception("failed")
    assert "Traceback" in output.getvalue()
    assert SECRET not in output.getvalue()


def test_the_http_server_says_only_that_something_happened(output: io.StringIO) -> None:
    """Its report of a malformed request has the head's bytes in it, of any shape."""
    server = logging.getLogger("aiohttp.server")
    try:
        raise ValueError(f"Invalid header: b'X-Key: {SECRET}'")
    except ValueError:
        server.exception("Error handling request from %s", f"b'X-Key: {SECRET}'")
    assert "server_event error=ValueError" in output.getvalue()
    assert SECRET not in output.getvalue()
    assert "Traceback" not in output.getvalue()
