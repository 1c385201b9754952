"""Runs that are fetched from nodes: lost, stopped and continued elsewhere, they equal one that was not interrupted.

Ray is left out: what it calls on the machine of the command is called here, and a lost node is an error at a call.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offramp.engine import fetched
from offramp.engine.fetched import Receiver
from offramp.engine.local import Job, Unwatched
from offramp.runs.train_all import PRELOAD
from offramp.train.log import read
from offramp.train.run_dir import claim, read_config


class Lost(Exception):
    """The node is gone: its processes end, and nothing more is sent."""


def lose_node() -> None:
    raise Lost


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def steps(run: Path) -> int:
    return len(read(run / "metrics.jsonl", "step")) if (run / "metrics.jsonl").is_file() else 0


@pytest.mark.usefixtures("forked_origin")
def test_a_run_that_is_lost_and_continued_elsewhere_equals_an_uninterrupted_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "EVERY", 0.0)
    run, log, receiver = tmp_path / "out/run", tmp_path / "out/logs/run.log", Receiver(lambda: None)
    claim(run, read_config(trained), resume=True)  # as `compare` does
    train = ["train", "--config", str(run / "config.yaml"), "--out", str(run), "--resume", "--checkpoint-every", "4"]

    def attempt(happens: Callable[[], None] | None) -> bool:
        """Work on a node to which this happens when steps have been recorded that were not recorded before."""
        before, pending = steps(run), [happens] if happens else []

        def call(method: str, *arguments: Any) -> Any:
            result = getattr(receiver, method)(*arguments)
            if method == "write" and pending and steps(run) > before:
                pending.pop()()
            return result

        job = Job(
            "run", "slow_training:main", [train], run, log, log.with_suffix(".json"), lambda: None, preload=PRELOAD
        )
        with fetched.on_node(job, call) as there:
            try:
                complete = fetched.work(job, there, call, Unwatched())
            except KeyboardInterrupt:  # it would end pytest
                pytest.fail("the training ended before it could be interrupted")
        assert job.failure is None
        return complete

    with pytest.raises(Lost):
        attempt(lose_node)
    assert steps(run) and not (run / "checkpoints").exists(), "the first checkpoint was on the node"
    assert not attempt(interrupt)
    reached = sorted((run / "checkpoints").iterdir())[-1].name
    with pytest.raises(Lost):
        attempt(lose_node)
    assert sorted((run / "checkpoints").iterdir())[-1].name == reached
    assert attempt(None) and log.read_text().count("continuing at epoch") == 2
    one, other = (load_file(folder / "last.safetensors") for folder in (trained, run))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert [line["terms"] for line in read(run / "metrics.jsonl", "step")] == [
        line["terms"] for line in read(trained / "metrics.jsonl", "step")
    ]
