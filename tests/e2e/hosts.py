"""Hosts that `ray up` can be pointed at: network namespaces on a bridge, each with its own sshd.

A host has its own processes, mounts and name as well, because `ray stop` kills by name whatever it
can see, and because ``/tmp``, ``/dev/shm``, ``/var/lib`` and root's home belong to one host.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tools import need, until

#: Names of interfaces have 15 characters at most.
PREFIX = "pslray"

_BOOT = """
set -e
mount --make-rprivate /
hostname {name}
mount --bind {site} {packages}
for each in tmp var/lib; do mkdir -p {folder}/$each; mount --bind {folder}/$each /$each; done
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
mount --bind {folder}/passwd /etc/passwd
exec {sshd} -D -e -f {folder}/sshd_config
"""
_SSHD = """
ListenAddress {address}
HostKey {key}
PidFile none
AuthorizedKeysFile {key}.pub
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
StrictModes no
AcceptEnv *
MaxStartups 100
"""


class Network:
    """The bridge, the key that opens all hosts, and the Python that they have in common."""

    def __init__(self, folder: Path) -> None:
        for program in ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare"):
            need(program)
        if os.geteuid() != 0:
            pytest.skip("namespaces as hosts need root")
        self.folder = folder
        self.key = folder / "key"
        self.hosts: list[Host] = []
        #: Two runs on one machine do not get in each other's way.
        self.number = next(n for n in range(1, 255) if not interface_exists(f"{PREFIX}{n}"))
        self.bridge = f"{PREFIX}{self.number}"
        self.address = f"10.213.{self.number}.1"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self.address}/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        #: On hosts, what this environment has; hosts have folders of their own where it may be.
        self.packages = folder / "packages"
        self.packages.mkdir()
        self._links = self._link_packages()

    def _link_packages(self) -> Path:
        """The same without passel: hosts get that from the wheel."""
        folder = self.folder / "links"
        folder.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if "passel" not in path.name and path.suffix != ".pth":
                (folder / path.name).symlink_to(self.packages / path.name)
        return folder

    def host(self, name: str, number: int) -> Host:
        """A running host at ``10.213.<network>.<number>``."""
        folder = self.folder / name
        for each in ("tmp", "var/lib", "home"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        host = Host(self, name, number, folder)
        if not (folder / "home" / "env").exists():
            host.make_python(self._links)
        self.hosts.append(host)
        host.boot()
        return host

    def remove(self) -> None:
        for host in self.hosts:
            host.power_off()
        run("ip", "link", "del", self.bridge)


class Host:
    """One host; `run` is what its owner does over SSH."""

    def __init__(self, network: Network, name: str, number: int, folder: Path) -> None:
        self.name = name
        self.network = network
        self.folder = folder
        self.address = f"10.213.{network.number}.{number}"
        self._space = f"{network.bridge}-{name}"
        self._link = f"{network.bridge}.{number}"
        self._init: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def make_python(self, links: Path) -> None:
        """An environment of the host's own, first in the PATH of its shells."""
        environment = self.home / "env"
        run(sys.executable, "-m", "venv", "--without-pip", str(environment))
        site = next(environment.glob("lib/python*/site-packages"))
        (site / "host.pth").write_text(f"{links}\n")
        for script in ("ray", "pip"):
            module = {"ray": "ray.scripts.scripts", "pip": "pip._internal.cli.main"}[script]
            path = environment / "bin" / script
            path.write_text(
                f"#!{environment}/bin/python\nimport sys\nfrom {module} import main\n"
                "sys.exit(main())\n"
            )
            path.chmod(0o755)
        profile = (
            f'export PATH="{environment}/bin:$PATH" RAY_USAGE_STATS_ENABLED=0 PIP_NO_INDEX=1\n'
        )
        (self.home / ".profile").write_text(profile)

    def boot(self) -> None:
        """Network, then a shell of its own namespaces that ends in sshd."""
        hosts = Path("/etc/netns", self._space)
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        run("ip", "netns", "add", self._space)
        link = ["ip", "link", "add", self._link, "type", "veth"]
        # A host that boots again has the network card of before: nobody's ARP table is wrong.
        card = f"02:00:00:00:00:{int(self.address.rpartition('.')[2]):02x}"
        run(*link, "peer", "name", "eth0", "address", card, "netns", self._space)
        run("ip", "link", "set", self._link, "master", self.network.bridge, "up")
        inside = ["ip", "-n", self._space]
        run(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "route", "add", "default", "via", self.network.address)
        users = Path("/etc/passwd").read_text().splitlines()
        root = f"root:x:0:0:root:{self.home}:/bin/bash"
        others = [line for line in users if not line.startswith("root:")]
        (self.folder / "passwd").write_text("\n".join([root, *others]) + "\n")
        (self.folder / "sshd_config").write_text(
            _SSHD.format(address=self.address, key=self.network.key)
        )
        script = _BOOT.format(
            name=self.name,
            folder=self.folder,
            sshd=need("sshd"),
            site=sysconfig.get_path("purelib"),
            packages=self.network.packages,
        )
        command = ["ip", "netns", "exec", self._space, "unshare", "-p", "-m", "-u"]
        command += ["--fork", "--mount-proc", "--kill-child", "bash", "-c", script]
        with (self.folder / "console.log").open("ab") as output:
            self._init = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        until(lambda: self.run("true", check=False, timeout_s=10).returncode == 0, 20)

    def power_off(self) -> None:
        """As if the plug were pulled: every process is gone at once. Its disk stays."""
        if self._init is None:
            return
        # The first process of the namespace goes with it (--kill-child), and all others with that.
        self._init.send_signal(signal.SIGKILL)
        self._init.wait(10)
        self._init = None
        run("ip", "netns", "del", self._space)
        if interface_exists(self._link):
            run("ip", "link", "del", self._link)
        shutil.rmtree(Path("/etc/netns", self._space))

    def run(
        self, command: str, *, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """What a shell says that somebody opens on the host."""
        words = ["ssh", "-i", str(self.network.key), "-o", "StrictHostKeyChecking=no"]
        words += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        words += ["-o", "ConnectTimeout=5", f"root@{self.address}"]
        done = subprocess.run(
            [*words, f"bash --login -c {shell_quoted(command)}"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0 or not check, (
            f"{self.name}: {command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done

    def processes(self, *words: str) -> list[str]:
        """Command lines on the host that contain one of `words`."""
        lines = self.run("ps -eo args --no-headers").stdout.splitlines()
        return [line for line in lines if any(word in line for word in words)]


def interface_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def shell_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout
