"""Worked examples of methods newer than the papers: BoostNet's sums and L2W's weights, losses and gradients to 1e-8."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.losses.cross_entropy import sample_cross_entropy
from offramp.losses.softmax import confidence
from offramp.methods.boostnet import AsLarge, exit_factors, objective, summed
from offramp.methods.l2w import centred, meta_loss, selected, shares
from offramp.net import Branch, MultiExitNet, segments
from offramp.outputs import Batch, ExitOutputs

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
LABELS = torch.tensor(GOLDEN["_inputs"]["y"])
BATCH = Batch(torch.zeros(3, 1), LABELS, torch.arange(3))


class Emit(nn.Module):
    """A head that answers what it is given, whatever comes in."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.logits, state, state


def increments(weaken: list[float], **how: bool) -> tuple[MultiExitNet, list[nn.Parameter]]:
    """Four exits that answer the golden logits, summed; and these logits."""
    heads = [Emit(torch.tensor(z, dtype=torch.float64)) for z in GOLDEN["_inputs"]["z"]]
    net = MultiExitNet([nn.Identity()] * 4, [Branch(nn.Identity(), head) for head in heads])
    return summed(net, weaken, **how), [head.logits for head in heads]


@pytest.mark.parametrize("entry", ["boost_t0.5", "boost_t1", "boost_t_list", "boost_t0", "boost_t0.5_nodetach"])
def test_running_sums(entry: str) -> None:
    golden = GOLDEN[entry]
    detach = not entry.endswith("nodetach")
    net, z = increments(exit_factors(tuple(golden.get("t", [0.5])), 4), detach=detach)
    outputs = net(torch.zeros(3, 1))
    loss = sum(objective(outputs, BATCH, 0.0).values(), torch.zeros(()))
    loss.backward()
    gradient = torch.stack([part.grad for part in z if part.grad is not None])
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-8)
    assert gradient.norm().item() == pytest.approx(golden["gz"], rel=1e-8)
    if not detach:
        return
    per_exit = sample_cross_entropy(outputs.logits, LABELS).mean(1)
    assert per_exit.tolist() == pytest.approx(golden["per_exit"], rel=1e-8)
    assert [part.norm().item() for part in gradient] == pytest.approx(golden["gz_per_exit"], rel=1e-8)
    assert outputs.logits[-1, 0].tolist() == pytest.approx(golden["s_train_lastexit_b0"], rel=1e-8)
    assert outputs.logits.softmax(-1).amax(-1)[-1].tolist() == pytest.approx(golden["conf_last"], rel=1e-8)


@pytest.mark.parametrize(("shift", "key"), [(False, "s_train_lastexit_b0"), (True, "s_eval_released_lastexit_b0")])
def test_sums_in_use_and_through_segments(shift: bool, key: str) -> None:
    golden = GOLDEN["boost_t_list"]
    net = increments(golden["t"], eval_shift=shift)[0].eval()
    for enabled in ([True] * 4, [False, True, False, True]):
        state, carry = torch.zeros(3, 1), ()
        for segment in segments(net, enabled):
            state, carry, logits = segment(state, carry)
        assert logits[0].tolist() == pytest.approx(golden[key], rel=1e-8)


def test_factors_of_one_two_and_many_values() -> None:
    assert exit_factors((0.5,), 3) == [0.5] * 3
    assert exit_factors((0.2, 0.8), 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    with pytest.raises(ValueError, match="weaken has 3 values, but the network has 4 exits: give 1, 2 or 4"):
        exit_factors((0.1, 0.2, 0.3), 4)


def test_losses_of_equal_size() -> None:
    scaled = AsLarge(0.9).double()
    scaled.prepare_for_exits(exits=2, widths=(1, 1))
    scaled.double()
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = sample_cross_entropy(logits, LABELS).mean(1)
    assert scaled(ExitOutputs(logits, (), ()), BATCH, 0.0)["ce"].item() == pytest.approx(first.sum().item())
    assert scaled.averages.tolist() == pytest.approx(first.tolist())
    second = sample_cross_entropy(3 * logits, LABELS).mean(1)
    average = 0.9 * first + 0.1 * second
    expected = (second * average.mean() / average).sum()
    assert scaled(ExitOutputs(3 * logits, (), ()), BATCH, 0.0)["ce"].item() == pytest.approx(expected.item())
    scaled.eval()(ExitOutputs(logits, (), ()), BATCH, 0.0)
    assert scaled.averages.tolist() == pytest.approx(average.tolist())


@pytest.mark.parametrize(("entry", "target"), [("p15", 0.75), ("p20", 1.0), ("p25", 1.25)])
def test_l2w_shares(entry: str, target: float) -> None:
    assert shares(target, 4) == pytest.approx(GOLDEN["l2w_q"][f"{entry}_K4"], rel=1e-12)


def test_l2w_selection_and_meta_loss() -> None:
    golden = GOLDEN["l2w_selection"]
    k, b, c = (torch.arange(n, dtype=torch.float64) for n in (4, 16, 5))
    logits = 2 * torch.sin(1 + 17 * k[:, None, None] + 5 * b[:, None] + c)
    labels = torch.arange(16) % 5
    assert [mine.tolist() for mine in selected(confidence(logits), 0.75)] == golden["selected"]
    assert meta_loss(logits, labels, 0.75, "exit-mean").item() == pytest.approx(golden["meta_loss"], rel=1e-10)
    mean = meta_loss(logits, labels, 0.75, "sample-mean").item()
    assert mean == pytest.approx(golden["meta_loss_sum_over_n"], rel=1e-10)


@pytest.mark.parametrize("entry", ["l2w_col_eps0.8", "l2w_mat_eps0.3", "l2w_row_eps0.3"])
def test_l2w_weighted_loss(entry: str) -> None:
    golden = GOLDEN[entry]
    values = torch.tensor(golden["w"], dtype=torch.float64).T
    centre: Any = entry[4:7]
    epsilon = float(entry.partition("eps")[2])
    weights = 1 + centred((values - 1) / epsilon + 0.3, centre, epsilon)  # centring takes any constant away again
    torch.testing.assert_close(weights, values, rtol=1e-10, atol=1e-12)
    z = torch.tensor(GOLDEN["_inputs"]["z"], dtype=torch.float64, requires_grad=True)
    loss = (weights * sample_cross_entropy(z, LABELS)).mean(1).sum()
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-8)
    assert z.grad is not None and z.grad.norm().item() == pytest.approx(golden["gz"], rel=1e-8)
