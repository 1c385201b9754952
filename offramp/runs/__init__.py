"""Tasks on trained runs: open, train, calibrate, evaluate, compare."""

from offramp.runs.run import LoadedRun, MultiNetRun, check_data, load_data, load_run, moved, open_run

__all__ = ["LoadedRun", "MultiNetRun", "check_data", "load_data", "load_run", "moved", "open_run"]
