"""The real Prometheus, before a running cluster, has all that a panel or an alert asks for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from conftest import gateway_of
from ray_lab import Lab, eventually
from tools import DockerRegistry, free_port, need, need_ray_default

pytestmark = pytest.mark.e2e

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BOARDS = sorted((CONFIGS / "grafana").glob("*.json"))
ALERTS = CONFIGS / "prometheus" / "alerts.yml"
MIB = 1 << 20


class Prometheus:
    """The server on a free port of this machine, scraping what Ray exports."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        config = yaml.safe_load((CONFIGS / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ALERTS)]
        config["scrape_configs"][0] = {
            "job_name": "ray",
            "static_configs": [{"targets": targets}],
        }
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [need("prometheus"), f"--config.file={file}", "--log.level=warn"]
        command += [f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address={self.url.removeprefix('http://')}"]
        with (folder / "prometheus.log").open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query. AssertionError where Prometheus calls it wrong."""
        url = f"{self.url}/api/v1/query?query={urllib.parse.quote(expression)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/api/v1/rules", timeout=10) as answer:
            groups = json.loads(answer.read())["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="module")
def prometheus(registry: DockerRegistry) -> Iterator[Prometheus]:
    """A cluster that has done something of everything, and its Prometheus."""
    need("prometheus")
    need_ray_default()
    path = Path(tempfile.mkdtemp(prefix="pprm"))
    lab = Lab(path, registry.url)
    server: Prometheus | None = None
    try:
        lab.start(["a", "a", "b"], {"store": {"capacity": "40 MiB", "reserve": "0 B"}})
        for node in lab.nodes.values():
            eventually(lambda n=node: gateway_of(n.folder), 30)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]
        server = Prometheus(path, targets)
        eventually(lambda: server.query("up") != [])
        use(lab, registry)
        yield server
    finally:
        if server is not None:
            server.stop()
        lab.stop()
        shutil.rmtree(path, ignore_errors=True)


def use(lab: Lab, registry: DockerRegistry) -> None:
    """Three blobs on all nodes, for two of which there is room."""
    for _ in range(3):
        data = os.urandom(16 * MIB)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        file = lab.folder / "blob"
        file.write_bytes(data)
        registry.push_blob("org/app", file, digest)
        for name in ("n1", "n2", "n3"):
            gateway = gateway_of(lab.nodes[name].folder)["gateway"]
            url = f"{gateway}/v2/org/app/blobs/{digest}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.read() == data


def panels() -> Iterator[tuple[str, str]]:
    for board in BOARDS:
        for panel in json.loads(board.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "1m")
                yield f"{board.stem}: {panel['title']}", expression.replace("$node", ".*")


def alerts() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_every_series_that_is_asked_for_exists(prometheus: Prometheus) -> None:
    asked: dict[str, str] = {}
    for title, expression in [*panels(), *alerts()]:
        names = re.findall(r"\bray_passel_\w+(?:\{[^}]*\})?", expression)
        assert names, title
        asked.update((name, title) for name in names)
    assert len(asked) > 30
    missing = {name: title for name, title in asked.items() if not prometheus.query(name)}
    eventually(lambda: all(prometheus.query(name) for name in missing), 30, 1)


def test_every_panel_has_data(prometheus: Prometheus) -> None:
    for title, expression in panels():

        def has_data(expression: str = expression) -> bool:
            values = [float(each["value"][1]) for each in prometheus.query(expression)]
            return any(value == value for value in values)  # NaN is not

        try:
            eventually(has_data, 30, 1)
        except AssertionError as error:
            raise AssertionError(f"{title}: no data for {expression}") from error


def test_the_numbers_are_those_of_what_was_done(prometheus: Prometheus) -> None:
    def value(expression: str) -> float:
        return sum(float(each["value"][1]) for each in prometheus.query(expression))

    # Three blobs went out of the registry once, to nine readers, and one had to make room.
    eventually(
        lambda: value('ray_passel_peer_fetched_bytes_total{source="origin"}') >= 48 * MIB, 20, 0.5
    )
    eventually(lambda: value("ray_passel_gateway_bytes_total") == 9 * 16 * MIB, 20, 0.5)
    assert value("ray_passel_store_evictions_total") >= 3
    assert value("ray_passel_store_capacity_bytes") == 3 * 40 * MIB
    assert value("ray_passel_peer_cross_zone_bytes_total") == 48 * MIB


def test_prometheus_evaluates_the_alerts_and_none_fires(prometheus: Prometheus) -> None:
    names = {name for name, _ in alerts()}
    eventually(lambda: {rule["name"] for rule in prometheus.rules()} == names)
    eventually(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()))
    assert [rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"] == []


def test_no_series_has_a_digest_or_a_repository(prometheus: Prometheus) -> None:
    everything = prometheus.query('{__name__=~"ray_passel_.+"}')
    assert len(everything) > 100
    for series in everything:
        own = {k: v for k, v in series["metric"].items() if k not in ("WorkerId", "ActorId")}
        assert not [v for v in own.values() if "sha256" in v or "org/app" in v], series
