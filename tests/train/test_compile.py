"""Compiled runs: none of their phases falls back to running uncompiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from functools import partial
from pathlib import Path
import torch
from torch import _dynamo
from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.testing import SilentReporter, patterns
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

torch.compile = partial(torch.compile, backend="eager")
config = resolve(Config(method="ztw", epochs=3, batch_size=8, width=4, device="cpu", precision="32", compile=True))
method, data = build_method(config), patterns(24, 8, 4, 16)
net = build_net(config, method, classes=4, shape=data.shape)
prepare_objective(method, net, data.shape)
with _dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
    Loop(make_fabric(config, freezes=True), Path(sys.argv[1]), config, net, method, data, SilentReporter()).run(False)
"""


@pytest.mark.full
def test_every_phase_is_compiled(tmp_path: Path) -> None:
    """Three phases, each with graphs for training and validation: dynamo's limit holds for each, not for all.

    In a process of its own: the compiler cannot read the run-time checks of the tests.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert ran.returncode == 0, ran.stderr[-2000:]
