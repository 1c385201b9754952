"""Running on the meta device: shapes come out, the module stays as it was."""

import pytest
import torch
from torch import nn

from offramp.meta import blank, run_on_meta, shape_of, written


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    net[2].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    answer = run_on_meta(net, blank(net, (3, 8, 8), batch=2))
    assert answer.is_meta and answer.shape == (2, 4, 6, 6)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.device.type == "cpu" for p in net.parameters())


def test_modes_come_back_after_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(RuntimeError):
        run_on_meta(net, blank(net, (1, 8, 8)))
    assert net.training


def test_a_blank_has_the_precision_of_the_weights() -> None:
    assert blank(nn.Linear(2, 2).double(), (1, 2, 2)).dtype == torch.float64
    assert blank(nn.ReLU(), (1, 2, 2)).dtype == torch.float32


def test_shapes_are_written_for_people() -> None:
    one, two = torch.zeros(2, 3, 4, 5), torch.zeros(2, 7)
    assert written(shape_of(one)) == "3×4×5"
    assert written(shape_of((one, two))) == "(3×4×5, 7)"
