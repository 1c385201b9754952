"""Forked processes find the package imported, and what they print and their exit status are returned."""

import signal
import sys
import time
from pathlib import Path

import forked
import pytest


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


def test_a_process_that_does_not_end_says_where_it_is(tmp_path: Path) -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    process = forked._start(forked._code, [code], tmp_path / "out", tmp_path / "err", None, None)
    while not (tmp_path / "out").is_file() or not (tmp_path / "out").read_text():
        time.sleep(0.01)
    try:
        with pytest.raises(AssertionError, match=r'still running after 0.01 s: [^"]*"<code of a test>", line 1'):
            process.wait(0.01)
    finally:
        process.kill()
