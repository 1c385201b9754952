"""A Ray cluster of this machine, to which tests add nodes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with one CPU."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine, workers at its 15 starve
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def hidden_node(cluster: Any, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A second node with one CPU that does not see the test's folder."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    start = f"{sys.executable} -c 'from ray.scripts.scripts import main; main()' start --block --num-cpus 1"
    hidden = f"mount -t tmpfs none {tmp_path} && exec {start} --address {cluster.address}"
    log = tmp_path / "node"
    with log.open("wb") as file:
        node = subprocess.Popen(["unshare", "--mount", "sh", "-c", hidden], stdout=file, stderr=file)
    try:
        cluster.connect()
        import ray

        end = time.monotonic() + 200
        while len(ray.nodes()) < 2:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        ray.shutdown()
        yield node
    finally:
        node.kill()
        node.wait(60)
