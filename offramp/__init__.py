"""offramp: vision networks with several exits that teach each other, and early exit that saves computing time."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a type checker would take `offramp.train` for the package of the training loop, see `_Package`
    from offramp.runs.train import train as train

__version__ = "0.1.0"

# Read when ONNX Runtime is imported: 1.31 and later write an identifier to the user's cache and send usage data.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME = {
    "Config": "offramp.config",
    "train": "offramp.runs.train",
    "TrainedRun": "offramp.runs.trained_run",
    "calibrate": "offramp.runs.calibrate",
    "Calibration": "offramp.runs.calibration",
    "Goal": "offramp.runs.goal",
    "evaluate": "offramp.runs.evaluate",
    "Evaluation": "offramp.runs.evaluation",
    "export": "offramp.runs.export",
    "Export": "offramp.runs.export",
    "load_bundle": "offramp.bundle.read",
    "Bundle": "offramp.bundle.read",
    "Prediction": "offramp.bundle.predict",
    "AsyncPredictor": "offramp.serve.predictor",
    "Server": "offramp.serve.server",
    "load_trace": "offramp.runs.trace_data",
    "TraceData": "offramp.runs.trace_data",
    "Reporter": "offramp.runs.reporting",
    "Silent": "offramp.runs.reporting",
    "Batch": "offramp.outputs",
    "ExitOutputs": "offramp.outputs",
    "Trace": "offramp.outputs",
    "Answer": "offramp.early_exit.runtime",
    "ExitPolicy": "offramp.early_exit.policy",
    "answer": "offramp.early_exit.runtime",
    "load_run": "offramp.runs",
    "Backbone": "offramp.net",
    "Branch": "offramp.net",
    "Cohort": "offramp.multi_net",
    "GatedFan": "offramp.multi_net",
    "Head": "offramp.net",
    "MultiExitNet": "offramp.net",
    "attach": "offramp.net",
    "Analysis": "offramp.runs.analyse",
    "analyse": "offramp.runs.analyse",
    "as_dict": "offramp.results",
    "available": "offramp.config.catalog",
    "bench": "offramp.runs.bench",
    "compare": "offramp.runs.compare",
    "compare_curves": "offramp.runs.curves",
    "compare_ledger": "offramp.runs.compare",
    "curves": "offramp.runs.curves",
    "deploy": "offramp.runs.deploy",
    "describe": "offramp.config.catalog",
    "Description": "offramp.config.catalog",
    "BundleEvaluation": "offramp.runs.evaluate_bundle",
    "evaluate_bundle": "offramp.runs.evaluate_bundle",
    "evaluate_comparison": "offramp.runs.evaluate",
    "fresh": "offramp.net",
    "info": "offramp.runs.info",
    "NetworkInfo": "offramp.runs.info",
    "NetworksInfo": "offramp.runs.info",
    "plain": "offramp.net",
    "predict": "offramp.bundle.predict_files",
    "Predictions": "offramp.bundle.predict_files",
    "report": "offramp.runs.report",
    "reproduce": "offramp.papers.reproduce",
    "Reproduction": "offramp.papers.reproduce",
    "segments": "offramp.net",
    "sweep": "offramp.runs.sweep",
    "SweepResult": "offramp.runs.sweep_result",
    "Method": "offramp.methods._method",
    "Phase": "offramp.methods._method",
    "StepContext": "offramp.step",
    "StepTrainer": "offramp.train.step_trainer",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'offramp' has no attribute {name!r}")


class _Package(ModuleType):
    """`offramp.train` is the function, although the training loop is in a package of the same name.

    Python sets every submodule that is imported as an attribute of its package, which would hide the function.
    """

    @property
    def train(self) -> Callable[..., Any]:
        """The function `offramp.runs.train.train`."""
        function: Callable[..., Any] = import_module(_HOME["train"]).train
        return function

    @train.setter
    def train(self, module: ModuleType) -> None:
        """Called by Python when it has imported the package `offramp.train`; nothing is to be done."""


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
