"""The driver of `ray_broadcast`: runs on one host of the lab and broadcasts files through Ray.

Each line of standard input is the path of a file; the answer is one line of JSON. A worker process
for every node is kept, so that no start of a process is in the times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

TIMEOUT_S = 420.0


@ray.remote(num_cpus=0)
class Receiver:
    """Gets the object on its node."""

    def get(self, boxed: list[ray.ObjectRef]) -> tuple[float, float, str]:
        """When the bytes were asked for, when they were here (monotonic), and their SHA-256."""
        began = time.monotonic()
        data = ray.get(boxed[0], timeout=TIMEOUT_S)
        ended = time.monotonic()
        return began, ended, hashlib.sha256(data).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gcs", required=True)
    parser.add_argument("--state", required=True, help="names the lab that this belongs to")
    options = parser.parse_args()
    ray.init(address=options.gcs, log_to_driver=False, logging_level=logging.ERROR)
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    receivers = [
        Receiver.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in others
    ]
    ray.get([receiver.__ray_ready__.remote() for receiver in receivers], timeout=TIMEOUT_S)
    for line in sys.stdin:
        print(json.dumps(broadcast(receivers, Path(line.strip()))), flush=True)


def broadcast(receivers: list[Any], path: Path) -> dict[str, Any]:
    """Seconds from `ray.put` here to the last `ray.get` on the others."""
    data = np.fromfile(path, dtype=np.uint8)
    began = time.monotonic()
    ref = ray.put(data)
    put_s = time.monotonic() - began
    # In a list, so that the task starts at once and gets the object by itself.
    answers = ray.get([receiver.get.remote([ref]) for receiver in receivers], timeout=TIMEOUT_S)
    finished = sorted(ended - began for _, ended, _ in answers)
    return {
        "put_s": round(put_s, 3),
        "finished_s": [round(each, 3) for each in finished],
        "digests": sorted({digest for _, _, digest in answers}),
    }


if __name__ == "__main__":
    main()
