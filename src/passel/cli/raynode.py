"""``python -m passel.cli.raynode``: starts one Ray node of a cluster on this machine, and ends.

A program of its own so that the supervisor never has Ray in its memory, and never dies of it. It
uses Ray's `Node`, as `ray.cluster_utils.Cluster` and `ray start` do: the first also writes the
address into ``/tmp/ray``, where other programs take it for theirs; the second cannot be told where
to put its sockets, whose paths must be short.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import ray
from ray._private.node import Node
from ray._private.parameter import RayParams

#: Peers move bytes over HTTP: the object store only has to exist. Ray refuses less than 75 MiB.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
#: All of 127/8 is this machine on Linux. Ray would take 127.0.0.1 and ``localhost`` for "whatever
#: address this machine has", which changes with the network.
ADDRESS = "127.0.0.2" if sys.platform == "linux" else None


def main() -> int:
    """Print ``{"gcs": address, "pids": {...}}`` when the node is registered."""
    parser = argparse.ArgumentParser(prog="python -m passel.cli.raynode", description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--labels", type=json.loads, required=True)
    parser.add_argument("--sockets", type=Path, required=True)
    parser.add_argument("--incarnation", type=int, required=True)
    parser.add_argument("--gcs", help="join the cluster of this address; none: begin one")
    parser.add_argument("--address", default=ADDRESS, help="the node's own, where it matters")
    add = parser.add_argument
    add("--object-store", type=int, default=OBJECT_STORE_BYTES, help="bytes, for other work of Ray")
    add("--object-port", type=int, default=0, help="of Ray's object manager; 0: any")
    options = parser.parse_args()
    name = f"{options.node}-{options.incarnation}"
    parameters = RayParams(
        node_ip_address=options.address or ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        node_name=options.node,
        gcs_address=options.gcs,
        gcs_server_port=None if options.gcs else 0,
        node_manager_port=0,
        object_manager_port=options.object_port,
        min_worker_port=0,
        max_worker_port=0,
        dashboard_agent_listen_port=0,
        num_cpus=1,
        num_gpus=0,
        resources={},
        object_store_memory=options.object_store,
        labels=options.labels,
        temp_dir=str(options.state / "ray"),
        plasma_store_socket_name=str(options.sockets / f"{name}.plasma"),
        raylet_socket_name=str(options.sockets / f"{name}.raylet"),
        include_dashboard=False,
        # What workers print stays in the session's files. To copy it to drivers as well, which here
        # nobody reads, takes a process of 50 MiB and more than a hundredth of a core on every node.
        include_log_monitor=False,  # type: ignore[arg-type]  # Ray means a bool
        no_monitor=True,
    )
    node = Node(parameters, head=options.gcs is None, shutdown_at_exit=False, spawn_reaper=False)
    pids = {kind: infos[0].process.pid for kind, infos in node.all_processes.items() if infos}
    # Even without a dashboard Ray starts 100 MiB of it, for its usage statistics, which are off.
    for info in node.all_processes.get("dashboard", ()):
        info.process.kill()
        info.process.wait(10)
    print(json.dumps({"gcs": node.gcs_address, "pids": pids}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
