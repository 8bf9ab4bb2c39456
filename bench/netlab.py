"""Machines in network namespaces on one switch, with shaped links: what the live benches run in.

::

    n1 ==p-n1==+                        every == is a veth, shaped at both ends: the host's end is
    n2 ==p-n2==+ br-a ==trunk== br-core   its uplink, the switch's end its downlink
    n3 ==p-n3==+ br-b ==trunk==+
    origin ====================+

The switch is a namespace too, so nothing of a lab shows in the root namespace, and several labs
with different prefixes do not disturb each other. Needs root.

A link has three queues: control (everything but bulk) and bare acknowledgements go first and bulk
waits, as under the fair queueing that Linux hosts have by default, which the kernels of small
virtual machines lack. All together get the link's rate, and each is counted. ``tbf`` instead is one
queue for all.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.201.0.0/16"
GATEWAY = "10.201.0.1"
#: A full queue holds the link up for so long.
QUEUE_S = 0.05
#: TCP payload in a full frame of 1514 bytes (with time stamps): what of a link can be goodput.
PAYLOAD_SHARE = 1448 / 1514
_CLONE_NEWNET = 0x40000000
#: Classes of a link.
_CONTROL, _ACKS, _BULK = 10, 15, 20
_RUN = Path("/run/netns")
_ETC = Path("/etc/netns")
_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


class LabError(RuntimeError):
    """One sentence for the user."""


def check_root() -> None:
    """Raises LabError without the right to make namespaces."""
    if os.geteuid() != 0:
        raise LabError("network namespaces and tc need root: run this as root, or with sudo")


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with one interface, eth0, and its port on the switch."""

    name: str
    namespace: str
    address: str
    port: str


@dataclass(slots=True)
class Traffic:
    """Bytes since the beginning, on one link: what its host sent and got."""

    up: int = 0
    down: int = 0


@dataclass
class NetLab:
    """One lab. `bulk_ports` are TCP ports whose traffic is bulk."""

    prefix: str
    bulk_ports: Sequence[int] = ()
    shaper: str = "htb"
    #: TCP's congestion control on all hosts; None: whatever this machine uses.
    congestion: str | None = None
    hosts: dict[str, Host] = field(default_factory=dict)
    zones: list[str] = field(default_factory=list)

    @property
    def switch(self) -> str:
        return f"{self.prefix}switch"

    # --- building -------------------------------------------------------------------------------

    def create(self) -> None:
        """An empty switch; what an earlier lab of this prefix left is gone."""
        check_root()
        self.destroy()
        self._ip("netns", "add", self.switch)
        self._in_switch(
            "link set lo up",
            "link add br-core type bridge",
            f"addr add {GATEWAY}/16 dev br-core",
            "link set br-core up",
        )

    def add_zone(self, zone: str, mbit: float | None) -> None:
        """A bridge for the zone, joined to the core by a trunk; `mbit` None: not shaped."""
        self._in_switch(
            f"link add br-{zone} type bridge",
            f"link add t-{zone} type veth peer name u-{zone}",
            f"link set t-{zone} master br-core up",
            f"link set u-{zone} master br-{zone} up",
            f"link set br-{zone} up",
        )
        if mbit is not None:
            self._shape(self.switch, f"t-{zone}", mbit)
            self._shape(self.switch, f"u-{zone}", mbit)
        self.zones.append(zone)

    def add_host(self, name: str, address: str, zone: str | None, mbit: float | None) -> Host:
        """A host with a default route; zone None: at the core."""
        host = Host(name, f"{self.prefix}{name}", address, f"p-{name}")
        bridge = f"br-{zone}" if zone else "br-core"
        etc = _ETC / host.namespace
        etc.mkdir(parents=True, exist_ok=True)
        names = f"127.0.0.1 localhost\n{address} {socket.gethostname()} {name}\n"
        (etc / "hosts").write_text(names, encoding="utf-8")
        self._ip("netns", "add", host.namespace)
        self._in_switch(
            f"link add {host.port} type veth peer name eth0 netns {host.namespace}",
            f"link set {host.port} master {bridge} up",
        )
        self._batch(
            ["ip", "-n", host.namespace, "-batch", "-"],
            [
                "link set lo up",
                f"addr add {address}/16 dev eth0",
                "link set eth0 up",
                f"route add default via {GATEWAY}",
            ],
        )
        if self.congestion is not None:
            congestion_control(host, self.congestion)
        if mbit is not None:
            self._shape(self.switch, host.port, mbit)
            self._shape(host.namespace, "eth0", mbit)
        self.hosts[name] = host
        return host

    def _shape(self, namespace: str, device: str, mbit: float) -> None:
        rate, limit = f"{mbit:g}mbit", int(mbit * 1e6 / 8 * QUEUE_S)
        if self.shaper == "tbf":
            text = f"tbf rate {rate} burst 256kb latency {QUEUE_S * 1000:g}ms"
            commands = [f"qdisc add dev {device} root {text}"]
        else:
            commands = [
                f"qdisc add dev {device} root handle 1: htb default {_CONTROL}",
                f"class add dev {device} parent 1: classid 1:1 htb"
                f" rate {rate} burst 128kb cburst 128kb",
            ]
            for number, prio in ((_CONTROL, 0), (_ACKS, 0), (_BULK, 1)):
                commands += [
                    f"class add dev {device} parent 1:1 classid 1:{number} htb"
                    f" rate {mbit / 3:g}mbit ceil {rate} burst 64kb cburst 64kb prio {prio}",
                    f"qdisc add dev {device} parent 1:{number} bfifo limit {limit}",
                ]
            match = f"filter add dev {device} parent 1: protocol ip prio %d u32 match ip protocol 6"
            for port in self.bulk_ports:
                for side in ("sport", "dport"):
                    ours = f"{match} 0xff match ip {side} {port} 0xffff"
                    # Less than 128 bytes in all, by the header's field of the total length.
                    commands += [
                        f"{ours % 1} match u16 0 0xff80 at 2 flowid 1:{_ACKS}",
                        f"{ours % 2} flowid 1:{_BULK}",
                    ]
        self._batch(["tc", "-n", namespace, "-batch", "-"], commands)

    # --- using ----------------------------------------------------------------------------------

    def command(self, host: Host, words: Sequence[str]) -> list[str]:
        """The command line that runs `words` on `host`."""
        return ["ip", "netns", "exec", host.namespace, *words]

    def connect(self, host: Host, address: tuple[str, int], timeout_s: float) -> socket.socket:
        """A connection from `host`; a socket stays in the namespace that it was made in."""
        with inside(host.namespace):
            sock = socket.socket()
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    def listen(self, host: Host, port: int) -> socket.socket:
        """A listening socket on `host`."""
        with inside(host.namespace):
            return socket.create_server((host.address, port), backlog=64)

    def traffic(self) -> dict[str, Traffic]:
        """Bytes on the link of every host, and as ``trunk-ZONE`` into (down) and out of zones.

        Counted by the switch's ports, behind the shapers of both directions.
        """
        with inside(self.switch):
            text = Path("/proc/thread-self/net/dev").read_text(encoding="ascii")
        counts: dict[str, Traffic] = {}
        for line in text.splitlines()[2:]:
            name, _, numbers = line.partition(":")
            fields = numbers.split()
            kind, _, rest = name.strip().partition("-")
            if kind == "p":
                counts[rest] = Traffic(up=int(fields[0]), down=int(fields[8]))
            elif kind == "t":
                counts[f"trunk-{rest}"] = Traffic(up=int(fields[0]), down=int(fields[8]))
        return counts

    def control_bytes(self) -> dict[str, Traffic]:
        """Bytes with all headers that were not bulk, per host; nothing when `shaper` is tbf."""
        counts: dict[str, Traffic] = {}
        if self.shaper == "tbf":
            return counts
        down = self._class_bytes(self.switch)
        for host in self.hosts.values():
            up = self._class_bytes(host.namespace).get("eth0", 0)
            counts[host.name] = Traffic(up=up, down=down.get(host.port, 0))
        return counts

    def _class_bytes(self, namespace: str) -> dict[str, int]:
        found: dict[str, int] = {}
        text = self._run(["tc", "-n", namespace, "-s", "-j", "qdisc", "show"])
        for entry in json.loads(text):
            if entry.get("kind") == "bfifo" and entry.get("parent") == f"1:{_CONTROL}":
                found[entry["dev"]] = int(entry["bytes"])
        return found

    # --- ending ---------------------------------------------------------------------------------

    def destroy(self) -> None:
        """Nothing with this prefix is left: no process inside, no namespace, no file."""
        names = [path.name for path in _RUN.glob(f"{self.prefix}*")] if _RUN.is_dir() else []
        deadline = time.monotonic() + 10.0
        while pids := [pid for name in names for pid in self._pids(name)]:
            if time.monotonic() > deadline:
                raise LabError(f"these processes in namespaces of the lab do not end: {pids}")
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for name in names:
            self._ip("netns", "del", name)
        for etc in _ETC.glob(f"{self.prefix}*"):
            (etc / "hosts").unlink(missing_ok=True)
            etc.rmdir()
        self.hosts.clear()
        self.zones.clear()

    def _pids(self, namespace: str) -> list[int]:
        text = self._run(["ip", "netns", "pids", namespace])
        found = [int(word) for word in text.split()]
        return [pid for pid in found if pid != os.getpid() and not _is_zombie(pid)]

    # --- commands -------------------------------------------------------------------------------

    def _in_switch(self, *lines: str) -> None:
        self._batch(["ip", "-n", self.switch, "-batch", "-"], lines)

    def _ip(self, *words: str) -> None:
        self._run(["ip", *words])

    def _batch(self, command: list[str], lines: Sequence[str]) -> None:
        self._run(command, "\n".join(lines) + "\n")

    def _run(self, command: list[str], text: str | None = None) -> str:
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=20, check=False
            )
        except FileNotFoundError as error:
            raise LabError(f"{command[0]} is not installed: install iproute2") from error
        if done.returncode != 0:
            why = done.stderr.strip() or f"exit code {done.returncode}"
            raise LabError(f"{' '.join(command)} failed: {why}")
        return done.stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread is in the namespace; other threads are not."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(_RUN / namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(libc, there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(libc, home)
    finally:
        os.close(home)


def _setns(libc: ctypes.CDLL, fd: int) -> None:
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def congestion_control(host: Host, wanted: str | None = None) -> str:
    """TCP's congestion control on `host`, after setting it to the one wanted. Raises LabError."""
    with inside(host.namespace):
        try:
            if wanted is not None:
                _CONGESTION.write_text(wanted, encoding="ascii")
            return _CONGESTION.read_text(encoding="ascii").strip()
        except OSError as error:
            raise LabError(
                f"this kernel does not let a namespace have the congestion control {wanted}:"
                " it can have those of the sysctl net.ipv4.tcp_allowed_congestion_control"
            ) from error


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")
