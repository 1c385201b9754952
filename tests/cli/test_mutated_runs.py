"""A run with a damaged file: what reads it says so in one line that names the file, or answers what it answered."""

import importlib.util
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.early_exit.policy_file import load_with_origin
from offramp.runs import load_data, load_run
from offramp.runs.reporting import SILENT
from offramp.runs.traces import _stored
from offramp.train import checkpoint
from offramp.train.run_dir import read_history, read_result

spec = importlib.util.spec_from_file_location("mutations", Path(__file__).parents[1] / "mutations.py")
assert spec is not None and spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory, succeed: Callable[..., None]) -> Path:
    """A run with a policy and traces."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("whole") / "run"))
    succeed("calibrate", folder, "--macs", "0.8", "--json")
    succeed("curves", folder, "--json")
    return folder


def opened(folder: Path) -> Any:
    """What a run answers: logits of images of test, and which images test and cal are."""
    run = load_run(folder)
    data = load_data(run)
    test = data.splits["test"]
    inputs = torch.from_numpy(test.source.batch(test.indices[:4])).float() / 255
    with torch.no_grad():
        logits = run.net(inputs).logits.numpy()
    return [logits, *(data.splits[name].indices for name in ("test", "cal"))]


def traced(folder: Path) -> Any:
    trace = _stored(load_run(folder), "test", "last", None, SILENT)
    return None if trace is None else [trace.logits.numpy(), trace.labels.numpy()]


def resumed(folder: Path) -> Any:
    result, refused = checkpoint.latest(folder / "checkpoints")
    if result is None:
        raise checkpoint.Damaged(*refused)
    return [*result.weights.values()]


READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": opened,
    "last.safetensors": opened,
    "split.safetensors": opened,
    "policy.json": lambda folder: load_with_origin(folder / "policy.json")[0],
    "result.json": lambda folder: {**(read_result(folder) or {}), "digest": ""},
    "metrics.jsonl": read_history,
    "traces/last-test.safetensors": traced,
    "checkpoints/*/checkpoint.json": resumed,
    "checkpoints/*/state.pt": resumed,
    "checkpoints/*/weights.safetensors": resumed,
}
DELETED = {"result.json": {"digest": ""}, "metrics.jsonl": []}
"""What is read where the file may be absent; a trace that cannot be used is computed again."""


def same(answer: Any, right: Any) -> bool:
    if answer is None or not isinstance(right, list) or not right or isinstance(right[0], dict):
        return answer is None or bool(answer == right)
    return len(answer) == len(right) and all(np.array_equal(a, b) for a, b in zip(answer, right, strict=True))


def run_mutations(whole: Path, tmp_path: Path, count: int, seed: int) -> Counter[str]:
    """Damage files in turn, as many times as said: how often each outcome was."""
    counts: Counter[str] = Counter()
    generator = random.Random(seed)
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for number in range(count):
        pattern = list(READERS)[number % len(READERS)]
        file = next(iter(sorted(folder.glob(pattern))))
        content = file.read_bytes()
        said, damaged = mutations.damage(content, file.name, generator)
        right = READERS[pattern](folder) if number < len(READERS) else RIGHT[pattern]
        RIGHT[pattern] = right
        _write(file, damaged)
        expected = DELETED.get(pattern, right) if damaged is None else right
        try:
            counts[mutations.outcome(lambda: READERS[pattern](folder), expected, file, same)] += 1  # noqa: B023
        except AssertionError as error:
            raise AssertionError(f"{pattern}, mutation {number}: {said}: {error}") from error
        file.write_bytes(content)
    return counts


RIGHT: dict[str, Any] = {}


def _write(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


def test_a_damaged_run_is_refused_or_answers_as_before(whole: Path, tmp_path: Path) -> None:
    counts = run_mutations(whole, tmp_path, 30, seed=0)
    assert sum(counts.values()) == 30 and counts["refused"] > 15


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_thousand_more(whole: Path, tmp_path: Path) -> None:
    counts = run_mutations(whole, tmp_path, 1200, seed=1)
    print(counts)
    assert sum(counts.values()) == 1200
