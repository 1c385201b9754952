"""The reliability benchmark on few requests: nothing is lost, doubled or mixed up; and that it would notice."""

from pathlib import Path
from typing import Any

import pytest

from offramp.bundle.read import Bundle

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("schemathesis")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import serve_reliability

    return serve_reliability


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of the libraries that make the requests
def test_every_request_has_its_answer(benchmark: Any, folder: Path, tmp_path: Path) -> None:
    words = ["--requests", "600", "--rate", "60", "--bundle", str(folder), "--log", str(tmp_path / "log")]
    result = benchmark.main(words)
    assert result["first_wrong"] == [] and result["requests"] == 600 and result["starts"] == 6


def test_answers_of_other_images_are_noticed(benchmark: Any, bundle: Bundle, pixels: Any) -> None:
    clients = benchmark.Clients(None, bundle, pixels[:20], [], 0)
    rows = [0, 1, 2]
    clients.check(rows, clients.exits[rows], clients.logits[rows])
    with pytest.raises(ValueError, match="other logits"):
        clients.check(rows, clients.exits[rows], clients.logits[[0, 2, 1]])
    with pytest.raises(ValueError, match="other exits"):
        clients.check(rows, clients.exits[rows] + 1, clients.logits[rows])
