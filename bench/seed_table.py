"""How long until a container's program answers, pulled whole or read lazily from ever nearer?

Sketch for an image of 150 MiB packed, a registry of 60 MiB/s after 20 ms: the pull takes 2.5 s and
unpacking 3 s. Lazily the program touches half of it in 130 reads of up to 1 MiB, which nydusd makes
of smaller ones: straight from the registry each costs 20 ms and its bytes' time, 4 s in all; by
passel the rest of the blob is on its way behind the first. From another node or this one it is what
nydusd takes to unpack them, and from its own cache the 0.5 s of the program itself.

All six with real programs: skopeo and tar, nydusd with a FUSE mount, a cluster of three nodes. The
comparator is the first row (the plain pull), the bound the last one (nydusd's own cache).

    python bench/seed_table.py [--repetitions 5] [--rate '60 MiB'] [--latency '20 ms']
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

from report import Report

from passel.errors import PasselError
from passel.notebook.mounted import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rate", default="60 MiB", help="what the registry sends per second")
    parser.add_argument("--latency", default="20 ms", help="before each of its answers")
    arguments = parser.parse_args()
    # Ray would put its workers behind everything else on the machine; the registry is not there.
    os.environ.setdefault("RAY_worker_niceness", "0")
    report = Report("six ways to a running program, by real clients")
    try:
        found = measure(arguments.repetitions, arguments.rate, arguments.latency)
    except PasselError as error:
        sys.exit(f"seed_table: {error}")
    pull, own = found.ways[0].median_s, found.ways[-1].median_s
    for way in found.ways:
        report.row(
            way.case,
            "s",
            way.seconds,
            parameters=vars(arguments),
            bound=own,
            of_the_plain_pull=round(way.median_s / pull, 3),
            from_registry_bytes=statistics.median(way.from_registry),
            reads=way.reads,
            packed_bytes=found.packed,
            unpacked_bytes=found.unpacked,
            read_errors=found.read_errors,
        )


if __name__ == "__main__":
    os.umask(0o077)
    main()
