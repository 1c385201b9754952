"""The files of deploy/ and the examples of docs/serving.md, checked without Docker, systemd and Kubernetes."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from offramp.cli.serve import serve

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/serving.md").read_text()
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
UNIT = (ROOT / "deploy/offramp.service").read_text()
KSERVE = (ROOT / "deploy/kserve.yaml").read_text()
DEFAULTS = {name: each.default for name, each in inspect.signature(serve).parameters.items()}
NOT_IN_THE_IMAGE = {"torch", "lightning-fabric", "pyarrow", "safetensors", "pyyaml", "jinja2", "onnx", "onnxscript"}
"""Packages that train, export and report. Serving works without them: `ALONE` in tests/conftest.py."""


def names(requirements: list[str]) -> set[str]:
    """The names of packages, extras included, without versions."""
    return {re.split(r"[<>=!,;]", each)[0] for each in requirements if not each.startswith("offramp")}


def instruction(name: str) -> list[str]:
    """The values of an instruction of the Dockerfile; continued lines are joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_the_image_contains_the_packages_of_serving_and_no_others() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    expected = names(project["dependencies"]) | names(extras["serve"]) | names(extras["export"])
    (install,) = (each for each in instruction("RUN") if "constraints.txt" in each)
    assert set(install.split("constraints.txt")[1].replace("'", "").split()) == expected - NOT_IN_THE_IMAGE
    assert expected >= NOT_IN_THE_IMAGE
    assert "--no-deps /src" in instruction("RUN")[2]  # else PyTorch would come along


def test_the_image_is_built_from_files_that_are_sent() -> None:
    sources = [word for each in instruction("COPY") if "--from" not in each for word in each.split()[:-1]]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {Path(each).parts[0] for each in sources} == sent
    assert all((ROOT / each).exists() for each in sent - {"models"})


def test_the_image_runs_the_server_without_root_and_asks_for_its_health() -> None:
    assert int(instruction("USER")[0]) > 0
    assert instruction("EXPOSE") == [str(DEFAULTS["port"])]
    check, entry, words = (json.loads(instruction(each)[0].removeprefix("CMD ")) for each in
                           ("HEALTHCHECK", "ENTRYPOINT", "CMD"))  # fmt: skip
    assert f"http://127.0.0.1:{DEFAULTS['port']}/v2/health/ready" in check[-1]
    assert entry[:2] == ["offramp", "serve"]
    assert words == [f"/{word}" for each in instruction("COPY") for word in each.split() if word.startswith("models/")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "offramp.service"
    unit.write_text(UNIT.replace("/opt/offramp/bin/offramp", sys.executable))  # it must exist
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "offramp.service" not in done.stderr, done.stderr
    unit.write_text(unit.read_text().replace("DynamicUser=yes", "DynamicUser=perhaps"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert "Failed to parse boolean value: perhaps" in done.stderr  # what is wrong is noticed


def test_kserve_probes_addresses_of_the_server() -> None:
    container = yaml.safe_load(KSERVE)["spec"]["predictor"]["containers"][0]
    assert container["name"] == "kserve-container"
    for probe, path in (("readinessProbe", "/v2/health/ready"), ("livenessProbe", "/v2/health/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": container["ports"][0]["containerPort"]}


@pytest.mark.parametrize(
    ("text", "setting"),
    [(TEXT, "--stop-timeout "), (UNIT, "TimeoutStopSec="), (KSERVE, "terminationGracePeriodSeconds: ")],
)
def test_all_requests_are_answered_before_the_server_is_killed(text: str, setting: str) -> None:
    (seconds,) = re.findall(rf"{setting}(\d+)", text)
    assert int(seconds) > DEFAULTS["drain_timeout"]


def test_options_of_all_examples_exist() -> None:
    options = {f"--{name.replace('_', '-')}" for name in DEFAULTS}
    args = re.findall(r"args: \[.*", KSERVE)
    commands = re.findall(r"offramp serve .*", TEXT + UNIT) + instruction("ENTRYPOINT") + instruction("CMD") + args
    assert len(commands) > 4
    assert {word for line in commands for word in re.findall(r"--[a-z-]+", line)} <= options


def test_the_document_links_all_files() -> None:
    assert set(re.findall(r"\]\(\.\./(deploy/[\w.]+)\)", TEXT)) == {
        file.relative_to(ROOT).as_posix() for file in (ROOT / "deploy").iterdir()
    }
