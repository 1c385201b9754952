"""How many runs at once: what finishes all soonest, within cores, memory and the user's limit of threads."""

import json
from pathlib import Path

import pytest

from offramp.config import Config, resolve
from offramp.engine.local import Unwatched
from offramp.lookup import ParameterError
from offramp.runs import packing
from offramp.runs.packing import Capacity, StepTime, best, candidates, check_jobs, runs_at_once
from offramp.runs.run_entries import Entry, Inputs

TWO = Capacity(cores=2, gpus=0, mib=16_000.0)


def test_numbers_that_are_tried() -> None:
    assert candidates(8, TWO, None) == [1, 2]
    assert candidates(8, TWO, 1) == [2], "every run has one thread anyway"
    assert candidates(100, Capacity(12, 0, None), None) == [1, 2, 4, 8, 12]
    assert candidates(100, Capacity(12, 0, None), 3) == [4, 8, 12]
    assert candidates(5, Capacity(12, 0, None), None) == [1, 2, 4, 5]
    assert candidates(100, Capacity(16, 2, None), None) == [2, 4, 8, 16], "all GPUs have a run"
    assert candidates(3, Capacity(16, 2, None), None) == [2, 3]


def test_what_finishes_all_soonest() -> None:
    times = {1: StepTime(0.28), 2: StepTime(0.49)}
    assert best(times, 8) == 2, "8 x 0.28 > 4 x 0.49"
    assert best(times, 3) == 1, "3 x 0.28 < 2 x 0.49: the last run would leave a core idle"
    assert best({1: StepTime(0.25), 2: StepTime(0.51)}, 8) == 2, "nearly equal: evaluation and start overlap"
    assert best({1: StepTime(0.2), 2: StepTime(0.51)}, 8) == 1
    assert best({}, 8) == 1


def test_memory_limits_runs() -> None:
    assert packing._fits(2, StepTime(1.0, mib=6_000.0), TWO)
    assert not packing._fits(2, StepTime(1.0, mib=7_000.0), TWO)
    assert packing._fits(1, StepTime(1.0, mib=70_000.0), TWO), "one run is tried in any case"
    gpus = Capacity(16, 2, None)
    assert packing._fits(4, StepTime(1.0, gpu_mib=20_000.0, gpu_total_mib=80_000.0), gpus)
    assert not packing._fits(6, StepTime(1.0, gpu_mib=20_000.0, gpu_total_mib=80_000.0), gpus)


def entries(folder: Path, number: int, steps: int) -> list[Entry]:
    config = resolve(Config(data="digits", epochs=1, device="cpu"))
    inputs = Inputs((1, 8, 8), 10, steps)
    return [Entry("joint", config, folder / str(one), inputs=inputs) for one in range(number)]


def test_few_steps_are_not_measured_and_a_choice_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "this_machine", lambda gpu: TWO)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert runs_at_once(entries(tmp_path, 1, 1000), tmp_path, Unwatched(), 0) == 1
    assert runs_at_once(entries(tmp_path, 4, 10), tmp_path, Unwatched(), 0) == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/packing.json").write_text(json.dumps({"jobs": 1, "cores": 2, "gpus": 0}))
    assert runs_at_once(entries(tmp_path, 4, 1000), tmp_path, Unwatched(), 0) == 1


@pytest.mark.parametrize("jobs", [0, -1])
def test_other_numbers_are_refused(jobs: int) -> None:
    with pytest.raises(ParameterError, match=f"jobs must be auto or at least 1, got {jobs}"):
        check_jobs(jobs)
