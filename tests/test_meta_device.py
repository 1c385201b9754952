"""Running on the meta device: shapes come out, the module stays as it was."""

import pytest
import torch
from torch import nn

from offramp.meta_device import blank, check_input, run_on_meta, shape_of, written


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


QUICK = [
    *(nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.GELU()),
    *(nn.Hardswish(), nn.Hardsigmoid(), nn.LayerNorm(8), nn.LayerNorm((4, 8, 8), elementwise_affine=False)),
]


@pytest.mark.parametrize("layer", QUICK, ids=str)
def test_layers_that_keep_the_shape_answer_as_they_would(layer: nn.Module) -> None:
    net = nn.Sequential(layer)
    values = torch.empty(2, 4, 8, 8, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    net.to(torch.bfloat16)
    quick, whole = (run_on_meta(net, values, whole=whole) for whole in (False, True))
    assert (quick.shape, quick.dtype, quick.stride()) == (whole.shape, whole.dtype, whole.stride())
    assert (quick is values) == (whole is values), "in place or not"
    assert "forward" not in vars(layer)
    changed = nn.Sequential(layer)
    changed[0].forward = lambda inputs: inputs.flatten(1)
    try:
        assert run_on_meta(changed, values).shape == (2, 256)
    finally:
        del changed[0].forward


def test_a_layer_norm_of_another_precision_answers_in_its_own() -> None:
    for inputs in (torch.empty(2, 4, device="meta", dtype=torch.bfloat16), torch.empty(4, 2, device="meta").t()):
        quick, whole = (run_on_meta(nn.LayerNorm(4), inputs, whole=whole) for whole in (False, True))
        assert (quick.dtype, quick.stride()) == (whole.dtype, whole.stride())
    with pytest.raises(RuntimeError, match="normalized_shape"):
        run_on_meta(nn.LayerNorm(4), torch.empty(2, 5, device="meta"))


def test_layers_refuse_inputs_as_they_would() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(4))
    for wrong in ((3, 8, 8), (4, 8)):
        for whole in (False, True):
            with pytest.raises((RuntimeError, ValueError)):
                run_on_meta(norm, torch.empty((2, *wrong), device="meta"), whole=whole)
    alone = nn.BatchNorm1d(4, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run_on_meta(alone, torch.empty(1, 4, device="meta"))


def test_a_blank_has_the_precision_of_the_weights() -> None:
    assert blank(nn.Linear(2, 2).double(), (1, 2, 2)).dtype == torch.float64
    assert blank(nn.ReLU(), (1, 2, 2)).dtype == torch.float32


def test_shapes_are_written_for_people() -> None:
    one, two = torch.zeros(2, 3, 4, 5), torch.zeros(2, 7)
    assert written(shape_of(one)) == "3×4×5"
    assert written(shape_of((one, two))) == "(3×4×5, 7)"


def pooled_five_times() -> nn.Module:
    return nn.Sequential(*[nn.MaxPool2d(2) for _ in range(5)], nn.Conv2d(3, 1, 1))


def test_inputs_that_do_not_fit_name_the_smallest_that_do() -> None:
    check_input(pooled_five_times(), (3, 32, 32))
    for side in (1, 8, 31):
        with pytest.raises(
            ValueError,
            match=rf"^inputs of 3×{side}×{side} do not fit the network: .*; the smallest that fit are 3×32×32$",
        ):
            check_input(pooled_five_times(), (3, side, side))


def test_no_size_is_named_where_none_fits() -> None:
    with pytest.raises(ValueError, match=r"^inputs of 4×32×32 do not fit the network: ") as caught:
        check_input(pooled_five_times(), (4, 32, 32))
    assert "smallest" not in str(caught.value)
