"""`passel config CLIENT`: what it does to files that are there already, twice, and back again.

That the clients understand the files is tested with the clients themselves (tests/e2e).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from passel.cli.configuring import app

CONFIG = """
upstreams:
  docker.io: {}
  registry.corp:5000: {api: "https://registry.corp:5000", aliases: [corp]}
default_upstream: docker.io
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "passel.yaml").write_text(CONFIG)
    return tmp_path / "root"


def config(root: Path, *words: str) -> Any:
    place = [] if words[0] == "nydusd" else ["--root", str(root)]
    return CliRunner().invoke(app, [*words, *place, "--config", str(root.parent / "passel.yaml")])


def tree(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


#: What each client's administrator has already; comments and order are theirs.
EXISTING = {
    "containerd": {
        "etc/containerd/config.toml": '# ours\nversion = 2\n\n[plugins."io.containerd.grpc.v1.cri"]'
        '\n  sandbox_image = "pause:3.9" # pinned\n',
        "etc/containerd/certs.d/docker.io/hosts.toml": 'server = "https://docker.io"\n# office\n'
        '[host."https://mirror.corp"]\n  capabilities = ["pull"] # no resolve\n',
    },
    "podman": {"etc/containers/registries.conf.d/10-corp.conf": "# theirs\n"},
    "crio": {"etc/crio/crio.conf": "# theirs\n"},
    "docker": {
        "etc/docker/daemon.json": '{\n    "log-driver": "journald",\n'
        '    "registry-mirrors": ["https://mirror.corp"]\n}\n'
    },
    "nydus-snapshotter": {
        "etc/nydus/config.toml": "# ours\nversion = 1\n\n[remote]\n  skip_ssl_verify = false # no\n"
    },
}


@pytest.mark.parametrize("client", EXISTING)
@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "existing"])
def test_write_again_and_undo(root: Path, client: str, existing: bool) -> None:
    root.mkdir()
    for name, text in EXISTING[client].items() if existing else ():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o640)
    before = tree(root)
    dry = config(root, client, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "+" in dry.stdout
    assert tree(root) == before
    done = config(root, client, "--write")
    assert done.exit_code == 0, done.stderr
    assert "then: " in done.stdout
    written = tree(root)
    for name, text in before.items():
        # What was there, and its comments, is still there; and a copy of it beside.
        for line in text.splitlines():
            assert "#" not in line or line in written[name]
        if written[name] != text:
            assert written[f"{name}.before-passel"] == text
            assert (root / name).stat().st_mode & 0o777 == 0o640
    assert "127.0.0.1:65001" in "".join(written.values())
    again = config(root, client, "--write")
    assert again.exit_code == 0, again.stderr
    assert tree(root) == written
    undone = config(root, client, "--undo")
    assert undone.exit_code == 0, undone.stderr
    assert tree(root) == before


def test_changes_made_since_survive_undo(root: Path) -> None:
    assert config(root, "containerd", "--write").exit_code == 0
    path = root / "etc/containerd/certs.d/docker.io/hosts.toml"
    path.write_text(path.read_text() + '[host."https://mirror.corp"]\n')
    assert config(root, "containerd", "--undo").exit_code == 0
    assert path.read_text().split() == [
        "server", "=", '"https://registry-1.docker.io"', '[host."https://mirror.corp"]',
    ]  # fmt: skip


def test_nydusd_keeps_the_rest(root: Path) -> None:
    root.mkdir()
    path = root / "nydusd.json"
    backend = {"scheme": "https", "host": "registry.corp:5000", "repo": "app", "retry_limit": 2}
    before = {"device": {"backend": {"type": "registry", "config": backend}}, "mode": "direct"}
    path.write_text(json.dumps(before, indent=4))
    for words in ([], ["--proxy"]):
        assert config(root, "nydusd", str(path), *words, "--write").exit_code == 0
        written = json.loads(path.read_text())
        found = written["device"]["backend"]["config"]
        assert found["proxy" if words else "mirrors"]
        assert config(root, "nydusd", str(path), *words, "--undo").exit_code == 0
        assert json.loads(path.read_text()) == before


@pytest.mark.parametrize(
    ("client", "name", "text", "said"),
    [
        ("containerd", "etc/containerd/config.toml", "x = [", "TOML"),
        (
            "containerd",
            "etc/containerd/config.toml",
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\n'
            'endpoint = ["https://mirror.corp"]\n',
            "registry.mirrors",
        ),
        ("containerd", "etc/containerd/config.toml", "version = 1\n", "version 1"),
        ("docker", "etc/docker/daemon.json", "[1]", "JSON object"),
        ("docker", "etc/docker/daemon.json", "{", "valid JSON"),
        ("podman", "etc/containers/registries.conf.d/50-passel.conf", "mine\n", "move it away"),
        (
            "nydus-snapshotter",
            "etc/nydus/config.toml",
            '[remote.mirrors_config]\ndir = "/x"\n',
            "/x",
        ),
    ],
)
def test_what_it_does_not_touch(root: Path, client: str, name: str, text: str, said: str) -> None:
    """One sentence, and not one file changed."""
    path = root / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    done = config(root, client, "--write")
    assert done.exit_code == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(root) == {name: text}
