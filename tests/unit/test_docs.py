"""What the documents say that the tests know better."""

from __future__ import annotations

from pathlib import Path

from e2e.matrix import table

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_table_of_clients_is_what_is_tested() -> None:
    assert table() in (DOCS / "clients.md").read_text()
