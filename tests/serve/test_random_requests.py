"""Requests at random from the server's own OpenAPI document: every answer is one that the document names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings

from offramp.serve.costs import CostCurve
from offramp.serve.server import Server


@pytest.fixture(scope="module")
def server(folder: Path, costs: tuple[CostCurve, ...]) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.serve.predictor.measure", lambda bundle, most: costs)
        with Server(folder, port=0, max_images=4, max_body=100_000, log="none") as running:
            yield running


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of the libraries that make the requests
def test_every_answer_is_a_documented_one(server: Server) -> None:
    import schemathesis

    document = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    for parameters in ("model", "version"):  # names that exist, so that more than 404 is seen
        for path in document["paths"].values():
            for operation in path.values():
                for each in operation.get("parameters", []):
                    if each["name"] == parameters:
                        each["schema"] = {"enum": ["digits" if parameters == "model" else "1", "none"]}
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    asked = sum(exercise(each, server.url) for each in operations if not each.path.endswith("/unload"))
    assert asked > 100
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}
    answer = requests.post(f"{server.url}/v2/models/digits/infer", json={"inputs": [tensor]}, timeout=10)
    assert answer.status_code == 200


def exercise(operation: Any, url: str, examples: int = 40) -> int:
    """Send random requests to one operation; how many."""
    documented, asked = operation.definition.raw["responses"], 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        nonlocal asked
        response = case.call(base_url=url)
        assert response.status_code < 500, response.text
        assert str(response.status_code) in documented or response.status_code == 405, response.text
        if response.status_code >= 400:
            assert list(response.json()) == ["error"] and "\n" not in response.json()["error"]
        asked += 1

    ask()
    return asked
