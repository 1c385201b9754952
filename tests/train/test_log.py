"""metrics.jsonl: appended, cut back to what a checkpoint has seen, and readable whatever happened."""

import json
import math
from pathlib import Path

import pytest

from offramp.train.log import Metrics, read


def record(step: int) -> dict[str, object]:
    return {"kind": "step", "epoch": 0, "step": step, "loss": 0.5}


def test_records_come_back_in_order_and_by_kind(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.write(record(0))
    metrics.write({"kind": "epoch", "epoch": 0, "step": 1, "train": {"loss": 0.5}, "val_accuracy": [0.5, 0.75]})
    metrics.close()
    assert [result["kind"] for result in read(tmp_path / "m.jsonl")] == ["step", "epoch"]
    assert read(tmp_path / "m.jsonl", "step") == [record(0)]
    assert read(tmp_path / "m.jsonl", "epoch")[0]["val_accuracy"] == [0.5, 0.75]


def test_a_resumed_run_goes_on_where_its_checkpoint_stood(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    metrics = Metrics(path)
    metrics.write(record(0))
    seen = metrics.flush()
    assert seen == path.stat().st_size
    metrics.write(record(1))
    metrics.close()
    again = Metrics(path, seen)
    again.write(record(1))
    assert again.flush() == path.stat().st_size
    again.close()
    assert read(path) == [record(0), record(1)]


def test_a_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    for _ in range(2):
        metrics = Metrics(tmp_path / "m.jsonl")
        metrics.write(record(0))
        metrics.close()
    assert read(tmp_path / "m.jsonl") == [record(0)]


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.write({"kind": "step", "step": 0, "loss": math.nan, "terms": {"ce": math.inf, "kl": 1.0}, "x": [math.nan]})
    metrics.close()
    text = (tmp_path / "m.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {"kind": "step", "step": 0, "loss": None, "terms": {"ce": None, "kl": 1.0}, "x": [None]}


def test_a_line_that_was_not_written_to_its_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(record(0)) + "\n" + json.dumps(record(1))[:20])
    assert read(path) == [record(0)]
    assert read(tmp_path / "nowhere.jsonl") == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{half", "it is not JSON"),
        ("\0\0", "it is not JSON"),
        ("[1]", "its content must be an object"),
        ('{"step": 1}', "kind is missing"),
        ('{"kind": 1}', "kind must be a text, got 1"),
        ('{"kind": "step", "epoch": 0, "step": 1, "loss": "low"}', "loss must be a finite number or null, got 'low'"),
        ('{"kind": "step", "epoch": "0", "step": 1}', "epoch must be a whole number, got '0'"),
        ('{"kind": "epoch", "epoch": 0, "step": 1, "val_accuracy": null}', "train is missing"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(record(0)) + f"\n{line}\n" + json.dumps(record(1)) + "\n")
    with pytest.raises(ValueError, match=rf"m\.jsonl, line 2, is damaged.* {says}"):
        read(path)


def test_tensorboard_gets_every_number_by_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path / "m.jsonl", events=tmp_path / "events")
    metrics.write({**record(3), "terms": {"ce": 0.25}})
    metrics.write({"kind": "epoch", "epoch": 0, "step": 4, "val_accuracy": [0.5, 0.75], "best": None})
    metrics.close()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "step/loss",
        "step/terms/ce",
        "epoch/val_accuracy/1",
        "epoch/val_accuracy/2",
    }
    (result,) = events.Scalars("step/terms/ce")
    assert (result.step, result.value) == (3, 0.25)
