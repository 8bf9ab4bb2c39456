"""``python -m passel.cli.launcher``: connects to a Ray cluster, has passel started there, and ends.

A program of its own because a driver dies with the raylet that it is connected to.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import ray

from passel.actors import launch
from passel.actors.words import NAMESPACE, controller_name
from passel.config import load

#: The controller's constructor waits for nothing but the start of shards.
READY_TIMEOUT_S = 60.0


def main() -> int:
    """The controller exists and has run its constructor."""
    parser = argparse.ArgumentParser(prog="python -m passel.cli.launcher", description=__doc__)
    parser.add_argument("--gcs", required=True)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    ray.init(
        address=options.gcs,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    launch.start(load(options.config))
    controller = ray.get_actor(controller_name(), namespace=NAMESPACE)
    ray.get(controller.__ray_ready__.remote(), timeout=READY_TIMEOUT_S)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
