"""/api/v1 on a cluster of three nodes: what docs/api.md says, as it stands there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Origin
from ray_lab import Lab, eventually, lab_with_gateways
from test_preheat import push_image

pytestmark = pytest.mark.cluster

TOKEN = "Planted-Token-41c7"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def api_lab(origin: Origin, folder: Path) -> Iterator[Lab]:
    (folder / "token").write_text(f"{TOKEN}\n")
    extra = {"gateway": {"api": {"token_file": str(folder / "token")}}}
    with lab_with_gateways(origin.url, ["a", "b"], extra) as lab:
        yield lab


def api_of(lab: Lab, node: str = "n2") -> str:
    note = json.loads((lab.nodes[node].folder / "gateway.json").read_text())
    return f"{note['health']}/api/v1"


def call(lab: Lab, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(api_of(lab) + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=40) as answer:
        return json.load(answer)


def examples() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)


def test_the_page_says_how(api_lab: Lab, origin: Origin) -> None:
    layers = {"linux/amd64": os.urandom(100_000), "linux/arm64": os.urandom(1000)}
    push_image(origin, "v1", layers)
    job = call(api_lab, "POST", "/jobs", {"what": "lab/org/image:v1"})
    eventually(lambda: call(api_lab, "GET", f"/jobs/{job['job']}")["state"] == "done")
    eventually(lambda: call(api_lab, "GET", "/blobs")["total"] == 4)
    blocks = [block for block in examples() if "TOKEN=" not in block]
    assert len(blocks) >= 5
    # Each answer alone: jq is not everywhere.
    script = "\n".join(["set -eu", *blocks])
    script = re.sub(r"^curl ", "printf '\\\\0'; curl --fail-with-body ", script, flags=re.M)
    environment = {**os.environ, "API": api_of(api_lab), "TOKEN": TOKEN}
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(each) for each in done.stdout.split("\0") if each.strip()]
    document = answers[0]
    schemas = document["components"]["schemas"]

    def matches(answer: Any, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        jsonschema.Draft202012Validator(schema).validate(answer)

    names = ["Job", "Job", "Jobs", "Job", "Job", "Schedule", "Schedule", "Schedules", "Schedule"]
    names += ["Blobs", "Removal", "Pin", "Pins", "Unpinned", "Drain", "Drains", "Drain"]
    for answer, name in zip(answers[1:], [*names, "Status"], strict=True):
        matches(answer, name)
    assert {node["node"] for node in answers[-1]["nodes"]} == {"n1", "n2"}


def test_a_schedule_runs_and_survives_its_controller(api_lab: Lab, origin: Origin) -> None:
    push_image(origin, "v2", {"linux/amd64": os.urandom(1000)})
    plan = {"what": "lab/org/image:v2", "every": "1 d", "to": "seeds"}
    name = call(api_lab, "POST", "/schedules", plan)["schedule"]

    def schedule() -> Any:
        found = call(api_lab, "GET", "/schedules")["schedules"]
        return next(each for each in found if each["schedule"] == name)

    job = eventually(lambda: schedule()["job"])
    eventually(lambda: call(api_lab, "GET", f"/jobs/{job}")["state"] == "done")
    before = schedule()
    os.kill(api_lab.status()["controller"]["pid"], signal.SIGKILL)
    assert eventually(schedule, 30) == before, "it does not run again before its time"


def test_what_the_registry_does_not_have(api_lab: Lab) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(api_lab, "POST", "/jobs", {"what": "lab/org/none:v1"})
    assert refused.value.code == 422
    (problem,) = json.load(refused.value)["errors"]
    assert "lab/org/none:v1" in problem["message"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(api_lab, "POST", "/pins", {"what": "http://lab/v2/a/blobs/\nsha256:1"})
    assert refused.value.code == 400
    assert "on one line" in json.load(refused.value)["errors"][0]["message"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(api_lab, "POST", "/jobs", {"what": "elsewhere/org/image:v1"})
    (problem,) = json.load(refused.value)["errors"]
    assert refused.value.code == 422
    assert "elsewhere" in problem["message"]
