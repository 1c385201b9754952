"""Ray Serve on two nodes of this machine under load: replicas are added; a replica and a node die; `serve build`."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from offramp.bundle.read import Bundle
from offramp.serve.server import Server

pytestmark = [pytest.mark.full, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one more node, with one CPU each."""
    pytest.importorskip("ray.serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # on a busy machine, workers at its 15 starve
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # the checks of shapes, which functions carry along
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.node = cluster.add_node(num_cpus=1)
        yield cluster
        import ray

        ray.shutdown()
        cluster.shutdown()


class Load:
    """Clients that ask one image after the other until they are told to stop; every answer is checked."""

    def __init__(self, url: str, bundle: Bundle, pixels: np.ndarray, clients: int = 4) -> None:
        self.url, self.pixels = url, pixels
        wanted = bundle.answer(bundle.manifest.preprocessing.normalise(pixels))
        self.logits, self.exits = wanted.logits, wanted.exit + 1
        self.asked, self.right, self.wrong = 0, 0, list[str]()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(seed,)) for seed in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def ask(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        with httpx.Client(base_url=self.url, trust_env=False, timeout=300) as client:
            while not self.stop.is_set():
                rows = generator.integers(0, len(self.pixels), generator.integers(1, 4))
                sent = {"name": "image", "datatype": "UINT8", "shape": list(self.pixels[rows].shape)}
                body = {"inputs": [{**sent, "data": self.pixels[rows].ravel().tolist()}]}
                self.asked += 1
                response = client.post("/v2/models/digits/infer", json=body)
                self.check(response, rows)

    def check(self, response: httpx.Response, rows: np.ndarray) -> None:
        if response.status_code != 200:
            self.wrong.append(response.text)
            return
        outputs = {each["name"]: np.asarray(each["data"]) for each in response.json()["outputs"]}
        off = np.abs(outputs["logits"].reshape(len(rows), -1) - self.logits[rows]).max()
        if off > 1e-5 * np.abs(self.logits).max() or (outputs["exit"] != self.exits[rows]).any():
            self.wrong.append(f"{rows}: {response.text}")
        self.right += 1

    def wait(self, more: int) -> None:
        """Until so many more requests are answered."""
        until(lambda goal=self.right + more: self.right >= goal or self.wrong)


def until(what: Callable[[], Any], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def replicas(node: str | None = None) -> list[dict[str, Any]]:
    """The living replicas of segments, on one node only if it is named."""
    from ray._private.state import actors  # the public API asks the dashboard, which does not run here

    alive = [each for each in actors().values() if each["State"] == "ALIVE" and "segment" in each["ActorClassName"]]
    return [each for each in alive if node is None or each["Address"]["NodeID"] == node]


def test_a_segment_gets_a_second_replica_under_load(
    cluster: Any, folder: Path, bundle: Bundle, pixels: np.ndarray
) -> None:
    from offramp.serve.ray_app import opened

    with (
        opened(cluster.address) as opener,
        Server(folder, opener=opener, port=0, log="none", max_batch=2, replicas=2) as server,
    ):
        assert len(replicas()) == len(bundle.segments)
        with Load(server.url, bundle, pixels[:200], clients=12) as load:  # more than half a batch is always on its way
            until(lambda: len(replicas()) > len(bundle.segments) or load.wrong)
            load.wait(50)
    assert not load.wrong and load.right == load.asked


def test_no_request_is_lost_with_a_replica_or_a_node(
    cluster: Any, folder: Path, bundle: Bundle, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.serve import ray_segment
    from offramp.serve.ray_app import opened

    monkeypatch.setattr(ray_segment, "INLINE", 0)  # every state goes through the object store and is lost with it
    with (
        opened(cluster.address) as opener,
        Server(folder, opener=opener, port=0, log="none") as server,
        Load(server.url, bundle, pixels[:200]) as load,
    ):
        load.wait(100)
        reloaded = httpx.post(f"{server.url}/v2/repository/models/digits/load", timeout=200, trust_env=False)
        assert reloaded.status_code == 200
        load.wait(50)
        before = replicas()
        os.kill(before[0]["Pid"], signal.SIGKILL)
        load.wait(100)
        there = cluster.node.node_id
        until(lambda: len(replicas()) == len(bundle.segments))
        assert replicas(there)
        cluster.remove_node(cluster.node, allow_graceful=False)
        load.wait(200)
    assert not load.wrong and load.right == load.asked


def test_an_application_for_serve_build_and_serve_run(
    cluster: Any, folder: Path, bundle: Bundle, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray
    import yaml
    from click.testing import CliRunner
    from ray import serve
    from ray.serve.scripts import build as command

    from offramp.serve.ray_app import ENVIRONMENT, build

    arguments = {"bundles": str(folder), "cpus": 0.2, "replicas": 2, "log": "none"}
    monkeypatch.setenv(ENVIRONMENT, json.dumps(arguments))
    done = CliRunner().invoke(command, ["offramp.serve.ray_app:app", "-o", str(tmp_path / "serve.yaml")])
    assert done.exit_code == 0, done.output
    config = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    names = [each["name"] for each in config["applications"][0]["deployments"]]
    assert sorted(names) == ["digits-1-segment-1", "digits-1-segment-2", "digits-1-segment-3", "front"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address=cluster.address, log_to_driver=False, ignore_reinit_error=True)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({name: str(value) for name, value in arguments.items()}), name="digits")
    url = f"http://127.0.0.1:{port}"
    with Load(url, bundle, pixels[:200], clients=2) as load:
        load.wait(50)
    assert not load.wrong and load.right == load.asked
    answer = httpx.post(f"{url}/v2/repository/models/digits/load", timeout=60, trust_env=False)
    assert answer.status_code == 400 and "deploy it again" in answer.json()["error"]
    serve.shutdown()
