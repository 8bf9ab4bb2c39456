"""A minute of the soak (`bench/soak.py` has the long one): kills, joins, outages, full disks."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import Soak

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(420)
def test_nothing_that_happens_in_a_minute_costs_a_wrong_or_a_failed_read(folder: Path) -> None:
    """Every byte that is read is compared with the registry's; at the end the books are right."""
    soak = Soak(folder / "soak", 4, seed=11)
    try:
        soak.start()
        report = soak.run(60)
    finally:
        soak.stop()
    assert not report["findings"]
    assert report["reads"] > 100
    assert sum(report["events"].values()) > 10
