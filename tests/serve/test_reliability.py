"""The reliability benchmark on few requests: nothing is lost, doubled or mixed up; and that it would notice."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from offramp.bundle.read import Bundle

SCRIPT = Path(__file__).parents[2] / "benchmarks/serve_reliability.py"


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    pytest.importorskip("schemathesis")
    return runpy.run_path(str(SCRIPT))


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of the libraries that make the requests
def test_every_request_has_its_answer(benchmark: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    words = ["--requests", "600", "--rate", "60", "--bundle", str(folder), "--log", str(tmp_path / "log")]
    result = benchmark["main"](words)
    assert result["first_wrong"] == [] and result["requests"] == 600 and result["starts"] == 6


def test_answers_of_other_images_are_noticed(benchmark: dict[str, Any], bundle: Bundle, pixels: Any) -> None:
    clients = benchmark["Clients"](None, bundle, pixels[:20], [], 0)
    rows = [0, 1, 2]
    clients.check(rows, clients.exits[rows], clients.logits[rows])
    with pytest.raises(ValueError, match="other logits"):
        clients.check(rows, clients.exits[rows], clients.logits[[0, 2, 1]])
    with pytest.raises(ValueError, match="other exits"):
        clients.check(rows, clients.exits[rows] + 1, clients.logits[rows])
