"""Jobs are spread over the GPUs of a machine."""

import json
import os
import threading
from pathlib import Path

import pytest

from offramp.engine import local
from offramp.engine.gpus import least_loaded, visible
from offramp.engine.local import Job


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("0,1", ["0", "1"]),
        ("GPU-5f, GPU-7a", ["GPU-5f", "GPU-7a"]),
        ("MIG-5f", ["MIG-5f"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["1"]),
        (None, ["0", "1", "2"]),  # in a container, CUDA numbers the visible GPUs from 0
    ],
)
def test_the_gpus_that_a_process_would_see(tmp_path: Path, variable: str | None, names: list[str]) -> None:
    for name in ("nvidia10", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert visible(environment, tmp_path) == names


def test_the_gpu_with_the_fewest_jobs() -> None:
    assert least_loaded(["0", "1"], []) == "0"
    assert least_loaded(["0", "1"], ["0"]) == "1"
    assert least_loaded(["0", "1"], ["0", "1", "1"]) == "0"
    assert least_loaded(["0"], []) is None and least_loaded([], []) is None


def tell(words: list[str]) -> None:
    """What a job of the test runs."""
    Path(words[0]).write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))


class Quiet:
    def started(self, job: Job) -> None: ...

    def running(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...

    def note(self, text: str) -> None: ...


def test_every_job_sees_its_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    jobs = [
        Job(
            name, "test_gpus:tell", [[str(tmp_path / name)]], tmp_path, tmp_path / "log", tmp_path / "out", lambda: None
        )
        for name in ("a", "b")
    ]
    assert threading.current_thread() is threading.main_thread()
    with (tmp_path / "lock").open("ab") as lock:
        assert local.run(jobs, 2, Quiet(), lock.fileno())
    assert [job.failure for job in jobs] == [None, None]
    assert [json.loads((tmp_path / name).read_text()) for name in ("a", "b")] == ["3", "5"]
