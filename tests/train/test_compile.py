"""Compiled runs: none of their phases falls back to running uncompiled, and only whole batches are compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path
import torch
from torch import _dynamo
from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.testing import SilentReporter, patterns
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

sizes = []
def backend(graph, inputs):
    tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
    sizes.extend(each.shape[0] for each in tensors if each.shape[1:] == (3, 16, 16))
    return graph.forward
torch.compile = partial(torch.compile, backend=backend)
config = resolve(Config(method="ztw", epochs=3, batch_size=8, width=4, device="cpu", precision="32", compile=True))
method, data = build_method(config), patterns(20, 6, 4, 16)
net = build_net(config, method, classes=4, shape=data.shape)
prepare_objective(method, net, data.shape)
with _dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True):
    Loop(make_fabric(config, freezes=True), Path(sys.argv[1]), config, net, method, data, SilentReporter()).run(False)
print(json.dumps(sizes))
"""


@pytest.mark.full
def test_whole_batches_of_every_phase_are_compiled(tmp_path: Path) -> None:
    """Three phases: dynamo's limit holds for each, not for all. Of 20 images, 4 are left for the last batch of 8.

    In a process of its own: the compiler cannot read the run-time checks of the tests.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert set(json.loads(ran.stdout)) == {8}
