"""A short piece of `bench/soak.py`: an hour of a cluster's life in a minute."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import Soak

pytestmark = pytest.mark.cluster

SEED = 7
SECONDS = 45.0


def test_no_read_is_wrong_or_fails_that_the_origin_could_have_answered(folder: Path) -> None:
    (folder / "soak").mkdir()
    soak = Soak(folder / "soak", 4, SEED)
    try:
        soak.start()
        report = soak.run(SECONDS)
    finally:
        soak.stop()
    assert report["reads"] > 50
    assert not report["findings"], (SEED, report["findings"], soak.diary.events[-20:])
