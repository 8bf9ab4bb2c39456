"""``python -m passel.gateway --config FILE``: the gateway of one node, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from passel.config import load
from passel.errors import ConfigError
from passel.gateway.app import ListenError, run
from passel.telemetry import logs


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 after SIGTERM or SIGINT, 1 for a taken port, 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="python -m passel.gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the YAML file")
    parser.add_argument("--node", help="the node's name, for the note and the logs")
    # Its only use: `passel down` finds the processes of a cluster by their command line.
    parser.add_argument("--state", type=Path, help="the folder of the cluster on this machine")
    options = parser.parse_args(arguments)
    try:
        config = load(options.config)
        logs.setup(config.logging.level)
        asyncio.run(run(config, node=options.node))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except ListenError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
