"""The examples of docs/serving.md, as far as they can be checked without Docker, systemd and Kubernetes."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from offramp.cli.serve import serve

TEXT = (Path(__file__).parents[2] / "docs/serving.md").read_text()


def block(kind: str) -> str:
    """The first code block of a kind."""
    return TEXT.split(f"```{kind}\n")[1].split("\n```")[0]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "offramp.service"
    unit.write_text(block("ini").replace("/opt/offramp/bin/offramp", sys.executable))  # it must exist
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "offramp.service" not in done.stderr, done.stderr
    unit.write_text(unit.read_text().replace("DynamicUser=yes", "DynamicUser=perhaps"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert "Failed to parse boolean value: perhaps" in done.stderr  # what is wrong is noticed


def test_kserve_probes_addresses_of_the_server() -> None:
    container = yaml.safe_load(block("yaml"))["spec"]["predictor"]["containers"][0]
    assert container["name"] == "kserve-container"
    for probe, path in (("readinessProbe", "/v2/health/ready"), ("livenessProbe", "/v2/health/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": container["ports"][0]["containerPort"]}


def test_options_of_all_examples_exist() -> None:
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    commands = re.findall(r"offramp serve .*", TEXT) + re.findall(r'ENTRYPOINT .*|CMD \["/.*|args: \[.*', TEXT)
    assert len(commands) > 4
    assert {word for line in commands for word in re.findall(r"--[a-z-]+", line)} <= options
