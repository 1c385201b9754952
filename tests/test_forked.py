"""Forked processes find the package imported, and what they print and their exit status are returned."""

import signal
import sys
from pathlib import Path

import forked


def test_what_is_preloaded_is_there_and_unchecked(tmp_path: Path) -> None:
    code = "import sys; print(set(sys.argv[1:]) <= set(sys.modules), 'beartype' in sys.modules); sys.exit(3)"
    ran = forked.run_code(code, *forked.PRELOAD, cwd=tmp_path)
    assert ran == (3, "True False\n", "")
    assert "beartype" in sys.modules


def test_a_process_runs_in_its_folder_and_a_failure_is_told(tmp_path: Path) -> None:
    ran = forked.run_code("import os; open('here', 'w').close(); 1 / 0", cwd=tmp_path)
    assert ran.returncode == 1 and "ZeroDivisionError" in ran.stderr and (tmp_path / "here").exists()
    assert forked.run_offramp("evaluate", tmp_path / "no-run")[0].returncode == 1
    process = forked.start("train", "--epochs", 500, "--out", tmp_path / "run", out=tmp_path / "said")
    process.kill()
    assert process.wait() == -signal.SIGKILL
