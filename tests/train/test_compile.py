"""Compiled runs: none of their phases falls back to running uncompiled."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import _dynamo

from offramp.config import Config, build_method, build_net, prepare, resolve
from offramp.testing import SilentReporter, patterns
from offramp.train.device import make_fabric
from offramp.train.loop import Loop


@pytest.mark.full
def test_every_phase_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three phases, each with graphs for training and validation: dynamo's limit holds for each, not for all."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = resolve(Config(method="ztw", epochs=3, batch_size=8, width=4, device="cpu", precision="32", compile=True))
    method, data = build_method(config), patterns(24, 8, 4, 16)
    net = build_net(config, method, classes=4, shape=data.shape)
    prepare(method, net, data.shape)
    with _dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
        Loop(make_fabric(config, parted=True), tmp_path, config, net, method, data, SilentReporter()).run(resume=False)
