"""offramp: vision networks with several exits that teach each other while they train, and leave early for real."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
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
    "bench": "offramp.runs.bench",
    "compare": "offramp.runs.compare",
    "compare_curves": "offramp.runs.curves",
    "compare_ledger": "offramp.runs.compare",
    "curves": "offramp.runs.curves",
    "deploy": "offramp.runs.deploy",
    "fresh": "offramp.net",
    "plain": "offramp.net",
    "report": "offramp.runs.report",
    "segments": "offramp.net",
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


def __dir__() -> list[str]:
    return sorted(__all__)
