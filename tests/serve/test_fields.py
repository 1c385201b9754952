"""Fields and parameters of inference requests: honoured, accepted because they say nothing, or refused."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from offramp.early_exit.policy import ExitPolicy
from offramp.serve.server import Server

pytestmark = pytest.mark.usefixtures("quick")
ADDRESS = "/v2/models/digits/infer"
TENSOR = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": [0] * 64}


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its policy lets no image exit before the last exit."""
    copy = Path(copytree(folder, tmp_path_factory.mktemp("patient") / "digits"))
    (copy / "policy-2.json").write_text(ExitPolicy(thresholds=(1e8,) * 3, enabled=(True,) * 3).to_json())
    with Server(copy, port=0, log="none") as running:
        yield running


def image() -> Any:
    sent = triton.InferInput("image", [1, 1, 8, 8], "UINT8")
    sent.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.uint8))
    return sent


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"parameters": {"deadline": 5}}, "parameters.deadline is unknown; the nearest is 'deadline_ms'"),
        ({"parameters": {"dead line": 5}}, "parameters.'dead line' is unknown; the nearest is 'deadline_ms'"),
        ({"parameters": {"top": 5}}, "parameters.top is unknown; there are 'deadline_ms', 'binary_data_output', 'time"),
        (
            {"parameters": {"headers": {}}},
            "parameters.headers is unknown; the nearest is",
        ),
        ({"parameters": {"priority": 1}}, "parameters.priority is not supported: send deadline_ms, by which requests"),
        ({"parameters": {"sequence_id": 7}}, "parameters.sequence_id is not supported: every image is classified"),
        ({"parameters": {"timeout": 1.5}}, "parameters.timeout must be a whole number of microseconds, got 1.5"),
        ({"parameters": {"timeout": -1}}, "parameters.timeout must be a whole number of microseconds, got -1"),
        ({"parameters": {"timeout": 9, "deadline_ms": 9}}, "parameters has both deadline_ms and timeout: send one"),
        ({"paramters": {"deadline_ms": 5}}, "paramters is unknown; the nearest is 'parameters'"),
        ({"output": []}, "output is unknown; the nearest is 'outputs'"),
        ({"inputs": [{**TENSOR, "dtype": "FP32"}]}, "inputs[0].dtype is unknown; the nearest is 'datatype'"),
        (
            {"inputs": [{**TENSOR, "parameters": {"binary_size": 64}}]},
            "inputs[0].parameters.binary_size is unknown; the nearest is 'binary_data_size'",
        ),
        (
            {"outputs": [{"name": "exit"}, {"name": "label", "shape": [1]}]},
            "outputs[1].shape is unknown; there are 'name', 'parameters'",
        ),
        (
            {"outputs": [{"name": "exit", "parameters": {"binary": True}}]},
            "outputs[0].parameters.binary is unknown; the nearest is 'binary_data'",
        ),
        (
            {"outputs": [{"name": "exit", "parameters": []}]},
            "outputs[0].parameters must be an object, got []",
        ),
        ({"outputs": [{"name": "exit"}] * 2}, "outputs[1].name is exit, which is asked for before: ask once"),
    ],
)
def test_what_would_be_ignored_is_refused(client: httpx.Client, body: dict[str, Any], says: str) -> None:
    answer = client.post(ADDRESS, json={"inputs": [TENSOR], **body})
    assert answer.status_code == 400 and answer.json()["error"].startswith(says), answer.text


def test_a_query_is_refused(client: httpx.Client) -> None:
    answer = client.post(f"{ADDRESS}?deadline_ms=5", json={"inputs": [TENSOR]})
    assert answer.status_code == 400
    assert answer.json()["error"] == "infer has no query, got 'deadline_ms=5': send `parameters` in the body"


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("index", {"raedy": True}, "raedy is unknown; the nearest is 'ready'"),
        ("index", {"ready": 1}, "ready must be true or false, got 1"),
        ("models/digits/load", {"config": "{}"}, "config is unknown; there are 'parameters'"),
    ],
)
def test_arguments_of_the_repository(client: httpx.Client, path: str, body: dict[str, Any], says: str) -> None:
    answer = client.post(f"/v2/repository/{path}", json=body)
    assert answer.status_code == 400 and answer.json()["error"] == says


def test_what_says_nothing_is_accepted(client: httpx.Client) -> None:
    """Defaults that clients write down, and the name of the model, which KServe's client sends."""
    nothing = {"priority": 0, "timeout": 0, "sequence_id": 0, "sequence_start": False, "sequence_end": False}
    body = {
        "id": "a",
        "model_name": "digits",
        "parameters": {**nothing, "binary_data_output": False},
        "inputs": [{**TENSOR, "parameters": {}}],
        "outputs": [{"name": "exit", "parameters": {"classification": 0, "binary_data": False}}],
    }
    answer = client.post(ADDRESS, json=body)
    assert answer.status_code == 200 and [each["name"] for each in answer.json()["outputs"]] == ["exit"]


def test_a_timeout_of_triton_is_a_deadline(remote: Any) -> None:
    result = remote.infer("digits", [image()], timeout=1, outputs=[triton.InferRequestedOutput("at_deadline")])
    assert result.as_numpy("at_deadline").tolist() == [True]
    assert remote.infer("digits", [image()], timeout=60_000_000).as_numpy("at_deadline").tolist() == [False]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"sequence_id": 7, "sequence_start": True}, r"parameters.sequence_id is not supported: every image"),
        ({"priority": 2}, r"parameters.priority is not supported: send deadline_ms"),
        ({"parameters": {"deadlne_ms": 5}}, r"parameters.deadlne_ms is unknown; the nearest is 'deadline_ms'"),
    ],
)
def test_what_the_client_of_triton_can_ask_for(remote: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(triton.InferenceServerException, match=says):
        remote.infer("digits", [image()], **more)
    assert remote.infer("digits", [image()], parameters={"deadline_ms": 60_000}).as_numpy("exit")[0] >= 1


def test_shared_memory_and_classification_of_triton(remote: Any) -> None:
    shared = triton.InferInput("image", [1, 1, 8, 8], "UINT8").set_shared_memory("region", 64)
    with pytest.raises(triton.InferenceServerException, match=r"inputs\[0\].parameters.shared_memory_region is not"):
        remote.infer("digits", [shared])
    output = triton.InferRequestedOutput("logits")
    output.set_shared_memory("region", 40)
    with pytest.raises(triton.InferenceServerException, match=r"outputs\[0\].parameters.shared_memory_region is not"):
        remote.infer("digits", [image()], outputs=[output])
    with pytest.raises(triton.InferenceServerException, match="classification is not supported: ask for the outputs"):
        remote.infer("digits", [image()], outputs=[triton.InferRequestedOutput("logits", class_count=3)])
