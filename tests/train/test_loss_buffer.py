"""What steps lose: summed over the epoch, told once a look, and an end where a number is none."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.train import log
from offramp.train.device import make_fabric
from offramp.train.loss_buffer import CHECK_EVERY, Record
from offramp.train.recipe import Recipe
from offramp.train.reporter import Diverged


class Told:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, dict[str, float]]] = []

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None: ...

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None:
        self.seen.append((epoch, step, terms))

    def epoch_done(self, record: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


def new_record(folder: Path) -> Record:
    return Record(make_fabric(Recipe(device="cpu", precision="32")), folder, Told())


def add(record: Record, step: int, ce: float) -> None:
    terms = {"ce": torch.tensor(ce), "kl": torch.tensor(0.5)}
    record.add(0, step, 0.1, terms, {"weights": torch.tensor([1.0, 2.0])})


def test_sums_and_records_hold_what_was_looked_at(tmp_path: Path) -> None:
    record, metrics = new_record(tmp_path), log.Metrics(tmp_path / "metrics.jsonl")
    record.metrics = metrics
    record.write_pending(0, 0)
    assert not record.sums and not record.reporter.seen  # type: ignore[attr-defined]
    for step, ce in enumerate((1.0, 2.0)):
        add(record, step, ce)
    assert not record.sums and not record.full
    record.write_pending(0, 2)
    assert record.sums == {"loss": 4.0, "ce": 3.0, "kl": 1.0} and not record.pending
    assert record.reporter.seen == [(0, 2, {"loss": 2.5, "ce": 2.0, "kl": 0.5})]  # type: ignore[attr-defined]
    metrics.close()
    written = log.read(tmp_path / "metrics.jsonl", "step")
    assert [line["loss"] for line in written] == [1.5, 2.5] and written[1]["weights"] == [1.0, 2.0]


def test_it_is_time_to_look_after_so_many_steps(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    for step in range(CHECK_EVERY):
        assert not record.full
        add(record, step, 1.0)
    assert record.full


@pytest.mark.parametrize("ce", [math.nan, math.inf])
def test_a_term_that_is_no_number_ends_the_run(tmp_path: Path, ce: float) -> None:
    record = new_record(tmp_path)
    add(record, 4, 1.0)
    add(record, 5, ce)
    with pytest.raises(Diverged, match=rf"^the loss term 'ce' is {ce} at step 5 \(epoch 1\); there is no checkpoint"):
        record.write_pending(0, 6)
