"""Worked examples of methods that train several networks: DML and ONE, losses and gradients to 1e-8 in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.methods import find
from offramp.methods.dml import DeepMutual
from offramp.methods.one import rise
from offramp.multi_net import gated
from offramp.outputs import Batch, ExitOutputs

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
BATCH = Batch(torch.zeros(3, 1), torch.tensor(GOLDEN["_inputs"]["y"]), torch.arange(3))


def golden_logits() -> Tensor:
    return torch.tensor(GOLDEN["_inputs"]["z"], dtype=torch.float64, requires_grad=True)


def assert_golden(entry: str, terms: dict[str, Tensor], z: Tensor) -> None:
    golden = GOLDEN[entry]
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert z.grad is not None
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-8)
    assert z.grad.norm().item() == pytest.approx(golden["gz"], rel=1e-8)
    assert [part.norm().item() for part in z.grad] == pytest.approx(golden["gz_k"], rel=1e-8)


def test_dml() -> None:
    z = golden_logits()
    assert_golden("dml", find("dml").build().objective(ExitOutputs(z, (), ()), BATCH, 0.0), z)


def test_dml_by_one_network_at_a_time() -> None:
    z = golden_logits()
    objective = find("dml").build(updates="alternating").objective
    assert isinstance(objective, DeepMutual)
    each = [objective.of_one(z[k], torch.cat([z[:k], z[k + 1 :]]).detach(), BATCH) for k in range(4)]
    assert_golden("dml", {f"{name}-{k}": term for k, terms in enumerate(each) for name, term in terms.items()}, z)


def test_one() -> None:
    z = golden_logits()
    b, k = (torch.arange(n, dtype=torch.float64) for n in (3, 4))
    gate = torch.sin(2 + 3 * b[:, None] + k).relu().softmax(1)
    outputs = ExitOutputs(torch.cat([z, gated(z, gate)[None]]), (), ())
    assert_golden("one", find("one").build(ramp_up=0.0).objective(outputs, BATCH, 0.0), z)


def test_ramp_up() -> None:
    golden = GOLDEN["one_rampup"]
    for epoch, weight in zip(golden["epochs"], golden["w"], strict=True):
        assert rise(epoch / 300, golden["length"] / 300) == pytest.approx(weight, rel=1e-8)
    assert rise(0.0, 0.0) == 1.0
