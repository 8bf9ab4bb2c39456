"""The package behind the notebooks: what it refuses, and pictures of other traces than theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.notebooks

from passel.errors import ConfigError, InputError
from passel.notebook import faults, lazy, live, mounted, placement, rollouts, scale, style, traffic
from passel.sim.rollout import simulate
from passel.sim.studies import scenario
from passel.telemetry.trace import Recorder, TraceFile, read_trace

DATA = Path(__file__).resolve().parents[2] / "notebooks" / "data"
PNG = b"\x89PNG"


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: rollouts.rollout(nodes=0), "nodes: expected 1 to 100000, got 0"),
        (lambda: rollouts.rollout(nodes=3, zones=5), "zones: expected at most nodes (3), got 5"),
        (lambda: placement.policies(["nope"], nodes=3), "policy: expected one of passel"),
        (lambda: placement.trunks(["0 Gbit/s"], nodes=3), "trunk: expected more than 0 bit/s"),
        (lambda: scale.study([0]), "nodes: expected 1 to 100000, got 0"),
        (lambda: scale.load(Path("/nowhere")), "/nowhere: no such file"),
        (lambda: faults.study({"x": ["crash zz"]}, nodes=3), "faults[0]: expected crash|slow"),
        (lambda: lazy.study(host=lazy.Host(registry=0)), "registry: expected more than 0, got 0"),
        (lambda: lazy.study({"mine": (0, 1)}), "mine: expected 1 to 65536 MiB, got 0"),
        (lambda: lazy.by_registry([1.0], "nope"), "image: expected one of node:19.0"),
        (lambda: mounted.measure(0), "repetitions: expected 1 to 50, got 0"),
        (lambda: mounted.measure(rate="fast"), "rate, latency: "),
        (lambda: live.record(Path("/x"), nodes=1), "nodes: expected 2 to 16, got 1"),
        (lambda: live.record(Path("/x"), nodes=2, zones=3), "zones: expected 1 to 2, got 3"),
    ],
)
def test_what_cannot_be_is_one_sentence(ask: Callable[[], object], said: str) -> None:
    with pytest.raises((ConfigError, InputError)) as refused:
        ask()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_torn_files_are_named(tmp_path: Path) -> None:
    for name, read in (("scale.jsonl", scale.load), ("live.parquet", read_trace)):
        torn = tmp_path / name
        torn.write_bytes((DATA / name).read_bytes()[:-9])
        with pytest.raises(InputError, match=f"{name}: torn"):
            read(torn)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    points = scale.study([10], n_pieces=8)
    scale.save(points, tmp_path / "points.jsonl")
    assert scale.load(tmp_path / "points.jsonl") == points
    (shipped,) = scale.load(DATA / "scale.jsonl")
    assert (shipped["nodes"], shipped["pieces"]) == (100_000, 128)
    assert shipped["ratio"] <= 1.03
    assert shipped["cross_zone"] == 1.0


def test_a_simulated_trace_is_drawn_like_a_live_one(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "sim.parquet", "virtual")
    readers = {"reads": 3, "think": "1 ms"}
    simulate(scenario(nodes=40, zones=2, blob="8 MiB", readers=readers), Recorder(file))
    file.close()
    table = read_trace(file.path)
    blob = traffic.pulled_whole(table)
    shown = [
        traffic.who_fed_whom(table),  # 40 nodes: a matrix
        traffic.way_of_a_piece(table, piece=3),
        traffic.heat_map(table),
        traffic.sources(table),
        traffic.slow_parents(table),
        traffic.reads(table, blob),
        traffic.prefetch(table, blob),
    ]
    assert all(picture.png().startswith(PNG) for picture in shown)
    assert sum(traffic.hit_shares(table).values()) == pytest.approx(1.0)
    with pytest.raises(InputError, match="nobody fetched piece 99"):
        traffic.way_of_a_piece(table, piece=99)
    with pytest.raises(InputError, match="nobody read this blob"):
        traffic.reads(table, "0" * 64)


def test_nearer_bytes_are_sooner_there() -> None:
    ((pull, _, cold, remote, local, cache),) = lazy.study({"small": (40, 100)}).values()
    assert pull > cold > remote > local > cache


def test_nydusd_like_reads_are_merged_and_inside() -> None:
    size = 24 << 20
    ranges = live.nydusd_ranges(size, seed=3)
    assert ranges == live.nydusd_ranges(size, seed=3)
    assert all(0 <= start < stop <= size and stop - start <= live.MERGED for start, stop in ranges)
    assert 0.25 * size <= sum(stop - start for start, stop in ranges) < 0.4 * size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1 234"), (0.0001, "0.0001"), (2.345, "2.35"), (float("inf"), "-")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert style.number(value) == text
