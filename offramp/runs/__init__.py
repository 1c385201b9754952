"""Tasks on trained runs: open, train, calibrate, evaluate, compare."""

from offramp.runs.run import LoadedRun, MultiNetRun, load_run, open_run
from offramp.runs.run_data import check_data, load_data, with_data_dir

__all__ = ["LoadedRun", "MultiNetRun", "check_data", "load_data", "load_run", "open_run", "with_data_dir"]
