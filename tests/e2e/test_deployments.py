"""The files for systemd, KubeRay and `ray up`, checked by those who will read them."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tools import need

from passel.config.load import load, parse

pytestmark = pytest.mark.e2e

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
UNIT = CONFIGS / "systemd" / "passel-gateway@.service"
MANIFEST = CONFIGS / "kuberay" / "raycluster.yaml"
KUBERAY = "github.com/ray-project/kuberay/ray-operator@v1.4.2"


def test_systemd_accepts_the_unit_and_the_gateway_its_command(tmp_path: Path) -> None:
    text = UNIT.read_text()
    unit = tmp_path / "passel-gateway@root.service"
    unit.write_text(text.replace("/opt/passel/bin/python", sys.executable))
    verified = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in verified.stderr.splitlines() if "passel" in line]
    assert verified.returncode == 0, verified.stderr
    assert not complaints, complaints
    command = re.search(r"^ExecStart=\S+ (.*)$", text, re.M)
    assert command is not None
    words = command[1].replace("%H", "host").split()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    # Every option is known; what is missing here is the file.
    assert done.returncode == 2
    assert "/etc/passel/passel.yaml: the configuration cannot be read" in done.stderr


@pytest.fixture(scope="module")
def crd() -> dict[str, Any]:
    """The schema of RayCluster, from KubeRay's own Go module."""
    done = subprocess.run(
        [need("go"), "mod", "download", "-json", KUBERAY],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
    )
    if done.returncode != 0:
        pytest.skip(f"the Go module {KUBERAY} cannot be had: {done.stdout[-300:]}")
    folder = Path(json.loads(done.stdout)["Dir"])
    file = folder / "config" / "crd" / "bases" / "ray.io_rayclusters.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(file.read_text(), loader)
    versions = {each["name"]: each for each in definition["spec"]["versions"]}
    schema: dict[str, Any] = versions["v1"]["schema"]["openAPIV3Schema"]
    return schema


def strict(schema: Any) -> Any:
    """The schema as the API server applies it with strict validation: unknown fields are errors."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in out or "x-kubernetes-preserve-unknown-fields" in out
    if isinstance(out.get("properties"), dict) and out.get("type") == "object" and not open_ended:
        out["additionalProperties"] = False
    if out.pop("x-kubernetes-int-or-string", False):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return out


def documents(*, with_redis: bool = False) -> dict[str, Any]:
    text = MANIFEST.read_text()
    if with_redis:
        text = re.sub(r"^  # (gcsFault.*|  redis.*)$", r"  \1", text, flags=re.M)
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def mistakes(schema: dict[str, Any], document: Any) -> list[str]:
    found = jsonschema.Draft7Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, each.path))}: {each.message[:200]}" for each in found]


def test_the_manifest_fits_the_schema_of_kuberay(crd: dict[str, Any]) -> None:
    schema = strict(crd)
    schema["properties"]["metadata"] = {"type": "object"}
    cluster = documents()["RayCluster"]
    assert mistakes(schema, cluster) == []
    kept = documents(with_redis=True)["RayCluster"]
    assert kept["spec"].pop("gcsFaultToleranceOptions")["redisAddress"] == "redis:6379"
    assert kept == cluster, "nothing else is different"
    assert mistakes(schema, documents(with_redis=True)["RayCluster"]) == []
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["workerGroupSpecs"][0]["maxReplica"] = wrong["spec"]["workerGroupSpecs"][0].pop(
        "maxReplicas"
    )
    assert any("maxReplica" in each for each in mistakes(schema, wrong)), "the check checks nothing"
    # A DaemonSet's pods are of the same kind as Ray's.
    pod = schema["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    pod["properties"]["metadata"] = {"type": "object"}
    assert mistakes(pod, documents()["DaemonSet"]["spec"]["template"]) == []


def pods() -> Iterator[Any]:
    all_of = documents()
    spec = all_of["RayCluster"]["spec"]
    yield all_of["DaemonSet"]["spec"]["template"]["spec"]
    yield spec["headGroupSpec"]["template"]["spec"]
    for group in spec["workerGroupSpecs"]:
        yield group["template"]["spec"]


def test_gateway_and_peers_of_a_node_meet_at_the_same_store() -> None:
    config = parse(documents()["ConfigMap"]["data"]["passel.yaml"])
    for pod in pods():
        assert pod["hostNetwork"], "the peer looks for the gateway on 127.0.0.1"
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert config.store.path.is_relative_to(volumes["store"]["hostPath"]["path"])
        for container in pod["containers"]:
            mounts = {each["mountPath"] for each in container["volumeMounts"]}
            assert mounts == {"/var/lib/passel", "/etc/passel"}


def test_the_fleet_configuration_is_the_one_of_the_manifest() -> None:
    config = parse(documents()["ConfigMap"]["data"]["passel.yaml"])
    assert config.upstreams == load(CONFIGS / "fleet.yaml").upstreams
