"""Features of other widths: left out with a note, or adapted by layers that train with the run."""

from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.methods import find
from offramp.methods._feature_adapter import FeatureAdapter, apply_to_width
from offramp.outputs import Batch, ExitOutputs

WIDTHS = (3, 5, 5)
BATCH = Batch(torch.zeros(4, 1), torch.tensor([0, 1, 2, 0]), torch.arange(4))


def outputs(widths: tuple[int, ...] = WIDTHS, sides: tuple[int, ...] = (2, 2, 2)) -> ExitOutputs:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, d, s, s, generator=generator).requires_grad_() for d, s in zip(widths, sides)]
    logits = torch.randn(len(widths), 4, 3, generator=generator, requires_grad=True)
    return ExitOutputs(logits, tuple(features.mean((2, 3)) for features in maps), tuple(maps))


def loss(objective: torch.nn.Module, outputs: ExitOutputs) -> Tensor:
    return objective(outputs, BATCH, 0.0)["features"]


@pytest.mark.parametrize("name", ["byot", "muse", "msd", "eed", "beed"])
def test_other_widths_are_left_out_with_a_note(name: str) -> None:
    objective, values = find(name).build().objective, outputs()
    (note,) = objective.prepare_for_exits(exits=3, widths=WIDTHS)
    assert note.startswith("exit 1 has features of width 3, the final exit 5") and "adapt=linear" in note
    loss(objective, values).backward()
    assert values.maps[0].grad is None and values.maps[1].grad.any()
    assert not list(objective.parameters())


@pytest.mark.parametrize(("name", "off"), [("byot", "beta=0"), ("muse", "schedule=off"), ("msd", "schedule=off")])
def test_where_no_early_exit_can_be_compared_it_is_refused(name: str, off: str) -> None:
    says = rf"no early exit's are as wide as the final exit's: 3, 4 against 5; .* method.{off} leaves the term out"
    with pytest.raises(ValueError, match=says):
        find(name).build().objective.prepare_for_exits(exits=3, widths=(3, 4, 5))


@pytest.mark.parametrize(
    ("shapes", "adapt", "fits"),
    [
        (((5, 2, 2), (5, 2, 2)), "off", True),
        (((3, 4, 4), (5, 2, 2)), "off", True),
        (((5, 4, 4), (5, 2, 2)), "off", False),
        (((3, 4, 4), (5, 2, 2)), "linear", False),
        (((3,), (5,)), "linear", True),
    ],
)
def test_maps_of_other_sizes_are_refused_before_training(shapes: Any, adapt: str, fits: bool) -> None:
    objective = find("beed").build(adapt=adapt).objective
    if fits:
        objective.check_exit_maps(shapes)
        return
    with pytest.raises(ValueError, match="maps of the exits, but theirs are of different sizes: 4×4, 2×2; take exits"):
        objective.check_exit_maps(shapes)
    find("beed").build(adapt=adapt, beta=0.0).objective.check_exit_maps(shapes)


@pytest.mark.parametrize("name", ["byot", "muse", "msd", "eed", "beed"])
def test_adapt_linear_learns_a_layer_where_widths_differ(name: str) -> None:
    objective, values = find(name).build(adapt="linear").objective, outputs()
    assert objective.prepare_for_exits(exits=3, widths=WIDTHS) == ()
    assert set(objective.state_dict()) >= {"match.layers.0.weight", "match.layers.0.bias"}
    assert [tuple(p.shape) for p in objective.parameters()] == [(5, 3), (5,)]
    loss(objective, values).backward()
    assert values.maps[0].grad.any() and all(parameter.grad.any() for parameter in objective.parameters())


def test_adapt_all_learns_one_for_every_early_exit_that_is_compared() -> None:
    objective = find("byot").build(adapt="all", without_features=(-2,), features="norm").objective
    objective.prepare_for_exits(exits=3, widths=(5, 5, 5))
    assert set(objective.match.layers) == {"0"}
    loss(objective, outputs((5, 5, 5))).backward()


def test_without_a_feature_term_there_are_no_layers_and_no_notes() -> None:
    for name, hyper in (("byot", {"beta": 0.0}), ("muse", {"schedule": "off"}), ("eed", {"beta": 0.0})):
        objective = find(name).build(adapt="linear", **hyper).objective
        assert objective.prepare_for_exits(exits=3, widths=WIDTHS) == () and not list(objective.parameters())
        assert "features" not in objective(outputs(), BATCH, 0.0)


def test_a_layer_that_was_not_prepared_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"adapt=linear needs a layer from width 3 to 5 at exit 1: call .*prepare"):
        loss(find("muse").build(adapt="linear").objective, outputs())


def test_all_exits_left_out_leave_a_zero() -> None:
    values = outputs((3, 4, 5))
    assert loss(find("muse").build().objective, values).item() == 0.0
    assert loss(find("eed").build(teachers=(1,)).objective, values).item() == 0.0


@pytest.mark.parametrize(("mode", "message"), [("beed", "cannot be averaged"), ("kd", "cannot compare")])
def test_maps_of_other_sizes_are_refused_not_pooled(mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(find("beed").build(mode=mode).objective, outputs((5, 5, 5), sides=(4, 2, 2)))


def test_a_layer_on_a_map_is_a_1x1_convolution() -> None:
    layer, features = torch.nn.Linear(3, 5), outputs().maps[0]
    expected = torch.nn.functional.conv2d(features, layer.weight[:, :, None, None], layer.bias)
    torch.testing.assert_close(apply_to_width(layer, features), expected)
    tokens = torch.randn(2, 7, 3)
    assert apply_to_width(layer, tokens).shape == (2, 7, 5)


def test_exits_that_are_not_compared_get_no_note() -> None:
    assert FeatureAdapter("off").create_layers((3, 5), unused=(0,)) == ()
