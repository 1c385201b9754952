"""The tasks as functions, as documented for Python: train, calibrate, evaluate, export, predict, traces."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import offramp
from offramp.lookup import ParameterError

SMALL: dict[str, Any] = {
    "net": "python:cli_nets:tiny",
    "branch": "linear",
    "method": "joint",
    "data": "digits",
    "holdout": 0.3,
    "epochs": 2,
    "batch_size": 256,
    "precision": "32",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small network trained on digits for two epochs."""
    config = offramp.Config(**SMALL)
    return offramp.train(config, out=tmp_path_factory.mktemp("api") / "a")


def test_train_calibrate_evaluate_export_predict(run: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    calibration = offramp.calibrate(run, offramp.Goal(macs=0.8))
    evaluation = offramp.evaluate(run)
    bundle = offramp.export(run, tmp_path / "bundle")
    said = capfd.readouterr()
    assert not said.out and not said.err
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8)).astype(np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    opened = offramp.load_bundle(tmp_path / "bundle")
    predictions = list(opened.predict([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "none.png"]))
    assert [Path(prediction.image).name for prediction in predictions] == ["a.png", "b.png", "none.png"]
    assert predictions[0].label in run.trace("test").classes and 0 < predictions[0].probability <= 1
    assert predictions[0].exit in range(4) and predictions[2].error == "the file does not exist"
    assert calibration.exit_policy == opened.policy == offramp.load_run(run.folder).policy
    assert evaluation.adaptive is not None and evaluation.folder == run.folder == calibration.folder
    assert bundle.folder == tmp_path / "bundle"
    results = {"early exit": evaluation, "exits here %": calibration, "verified on": bundle, "2 epochs": run}
    for words, result in results.items():
        assert words in str(result) and json.loads(json.dumps(dataclasses.asdict(result)))


def test_a_finished_run_is_returned_by_resume(run: Any) -> None:
    config = offramp.Config(**SMALL)
    assert offramp.train(config, run.folder, resume=True) == run
    auto = dataclasses.replace(config, precision="auto")  # stays what it was when the run began
    assert offramp.train(auto, run.folder, resume=True) == run


def test_every_task_takes_what_train_returned(run: Any, tmp_path: Path) -> None:
    loaded = offramp.load_run(run)
    result = offramp.compare_curves([loaded], tmp_path)
    assert loaded.folder == run.folder and [curves.run for curves in result.runs] == [run.run]
    with pytest.raises(ValueError, match="one network: there is nothing to extract"):
        offramp.deploy(run, tmp_path)
    with pytest.raises(ValueError, match="is named twice"):
        offramp.report(run, loaded)


def test_a_reporter_is_called(run: Any) -> None:
    class Counting(offramp.Silent):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def working(self, text: str, total: int) -> Any:
            self.seen.append(f"{text} {total}")
            return super().working(text, total)

    reporter = Counting()
    assert isinstance(reporter, offramp.Reporter)
    offramp.load_trace(run, "val", reporter=reporter)
    assert reporter.seen == ["evaluating val 217"]


def test_a_trace_is_numpy_arrays(run: Any) -> None:
    trace = run.trace("test", features=True)
    loaded = offramp.load_run(run.folder)
    assert trace.logits.shape == (4, 359, 10) and trace.logits.dtype == np.float32
    assert trace.outputs == ("exit1", "exit2", "exit3", "final") and len(trace.classes) == 10
    assert trace.labels.shape == trace.ids.shape == (359,) and trace.features is not None
    head = loaded.net.branches[-1]
    weights = [module for module in head.modules() if isinstance(module, torch.nn.Linear)][-1]
    logits = weights(torch.from_numpy(trace.features[-1])).detach().numpy()
    assert np.abs(logits - trace.logits[-1]).max() <= 1e-5 * np.abs(trace.logits[-1]).max()
    accuracy = (trace.logits.argmax(2) == trace.labels).mean(1)
    assert offramp.evaluate(run).accuracy == pytest.approx(accuracy.tolist())
    assert np.array_equal(loaded.trace("test").logits, trace.logits) and loaded.trace().features is None
    offramp.load_run(run.folder, "best").trace("cal")
    assert (run.folder / "traces" / "best-cal.safetensors").is_file()
    with pytest.raises(ParameterError, match=r"split must be one of those of .*, got 'tset'; the nearest is 'test'"):
        run.trace("tset")


def test_a_trace_as_a_dataframe(run: Any) -> None:
    pytest.importorskip("pandas", reason="the extra dataframe is not installed")
    trace = run.trace("test")
    frame = trace.to_dataframe()
    assert list(frame.columns[:4]) == ["id", "label", "exit1_class", "exit1_confidence"] and len(frame) == 359
    confidence = torch.from_numpy(trace.logits[0]).softmax(1).amax(1).numpy()
    assert frame["exit1_confidence"].to_numpy() == pytest.approx(confidence, rel=1e-5)
    assert (frame["final_class"] == frame["label"]).mean() == pytest.approx(offramp.evaluate(run).accuracy[-1])


def test_without_pandas_it_is_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas, which is not installed: pip install 'offramp\[dataframe\]'"):
        run.trace("test").to_dataframe()
    with pytest.raises(ParameterError, match="batch_size must be at least 1, got 0"):
        offramp.evaluate(run, batch_size=0)
    with pytest.raises(ParameterError, match="images must be at least 1000, got 5"):
        offramp.export(run, "nowhere", images=5)


def test_curves_of_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name at least one run"):
        offramp.compare_curves([], tmp_path)
