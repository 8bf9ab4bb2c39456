"""Do kills, joins, outages and full disks, a day in ten minutes, cost one wrong or failed read?

Expect none: of every blob a node can ask its disk, its peers and the registry, and no process is
the only way to any of them. Memory, descriptors, disk and logs stay where they were in the first
minute. The comparator is the registry itself: every byte that is read is compared with its own.

    python bench/soak.py --minutes 10 --seed 1

The last line of the output is the report; a finding ends the run with exit code 1. The same seed
has the same schedule, not the same race.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "cluster")]

from soak import Soak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--keep", action="store_true", help="leave the folders for a look")
    options = parser.parse_args()
    # Ray would put its workers behind everything else on the machine; the registry is not there.
    os.environ.setdefault("RAY_worker_niceness", "0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster is taken down then too
    folder = Path(tempfile.mkdtemp(prefix="psoak"))
    print(f"seed {options.seed}, in {folder}", file=sys.stderr)
    soak = Soak(folder, options.nodes, options.seed)
    try:
        soak.start()
        report = soak.run(options.minutes * 60)
    finally:
        soak.stop()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    for event in soak.diary.events:
        print(json.dumps(event))
    print(json.dumps(report))
    if report["n_findings"]:
        print(f"{report['n_findings']} findings; the first: {report['findings'][0]}")
        sys.exit(1)


if __name__ == "__main__":
    main()
