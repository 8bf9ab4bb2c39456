"""Everything that may happen to a crowd happens to one: every reader gets the right bytes, in time.

The bounds on what leaves the registry are in `fault_crowd.FAULTS`, each with its reason. How long a
reader was held up is printed and not judged: `bench/faults.py` compares it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_crowd import FAULTS, MIB, FaultLab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def faults(folder: Path) -> Iterator[FaultLab]:
    lab = FaultLab(folder / "faults", n_nodes=4, size=24 * MIB, seed=4)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@pytest.mark.parametrize("name", FAULTS)
def test_every_reader_gets_the_right_bytes(faults: FaultLab, name: str) -> None:
    crowd = faults.crowd(name)
    print(
        f"last finish {crowd.last_finish_s:.1f} s, held up for {crowd.held_up[0]:.1f} s at"
        f" {crowd.held_up[1]}, origin {crowd.origin_share:.3f}, {len(crowd.failures)} failed reads"
    )
    assert crowd.n_wrong == 0
    assert not crowd.unexcused()
    assert crowd.last_finish_s < float("inf"), crowd.failures
    assert crowd.origin_share <= 1 + crowd.fault.spare, crowd.fault.why
