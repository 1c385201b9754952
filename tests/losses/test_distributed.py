"""Two processes that train together get the gradients of one process with the whole batch.

Run as a program, this file is what the two processes do.
"""

import copy
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from offramp.losses.distributed import gathered, global_mean, global_sum, least, processes, weighing, weight, weight_of
from offramp.methods import find
from offramp.methods._temperature import Temperature
from offramp.outputs import Batch, ExitOutputs

METHODS = {
    "muse": {"beta_begin": 0.01},
    "byot-norm": {"beta": 0.3, "features": "norm"},
    "eed": {},
    "beed": {},
    "dbt": {},
}
SAMPLES = 8
SHARES = ((0, 4, SAMPLES), (0, 3, SAMPLES))


def outputs(trunk: nn.Linear, heads: nn.ModuleList, inputs: Tensor) -> ExitOutputs:
    features = [trunk(inputs), trunk(inputs).square(), trunk(inputs).sin()]
    logits = torch.stack([head(feature) for head, feature in zip(heads, features)])
    return ExitOutputs(logits, tuple(features), tuple(feature[..., None, None] for feature in features))


def gradients(name: str, bounds: tuple[int, ...], rank: int) -> list[Tensor]:
    """Gradients of one step on this rank's share of eight samples, averaged over ranks as DDP does; then T if any."""
    ranks = len(bounds) - 1
    torch.manual_seed(0)
    trunk, heads = nn.Linear(5, 4).double(), nn.ModuleList(nn.Linear(4, 3) for _ in range(3)).double()
    ours = slice(bounds[rank], bounds[rank + 1])
    inputs = 5 * torch.randn(SAMPLES, 5, dtype=torch.float64)[ours]
    batch = Batch(inputs, (torch.arange(SAMPLES) % 3)[ours], torch.arange(SAMPLES)[ours])
    objective = find(name.split("-")[0]).build(**copy.deepcopy(METHODS[name])).objective
    with weighing(weight_of(len(inputs), inputs)):
        (sum(objective(outputs(trunk, heads, inputs), batch, 0.0).values()) * weight()).backward()
    assert weight() == 1.0
    result = [parameter.grad for module in (trunk, heads) for parameter in module.parameters()]
    if ranks > 1:
        for gradient in result:
            dist.all_reduce(gradient)
            gradient /= ranks
    return result + [buffer.double() for buffer in objective.buffers()]


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    result = {f"{name} {bounds[1]}": gradients(name, bounds, rank) for name in METHODS for bounds in SHARES}
    value = torch.tensor(float(rank + 1), requires_grad=True)
    total = global_sum(value)
    total.backward()
    temperature = Temperature(start=1.0, rising=True)
    temperature(torch.tensor([[50.0, 0.0, 0.0]]) * (1 - rank))  # one process is sure, the other is not: 2/3 together
    sums = [
        total.item(),
        value.grad.item(),
        global_mean(torch.tensor(float(rank))).item(),
        processes(),
        temperature.rises.item(),
        least(5 - rank, value),
    ]
    columns, first = gathered(torch.arange(2.0 * (3 - rank)).reshape(2, 3 - rank))
    sums += [first, *columns.flatten().tolist()]
    torch.save((result, sums), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, list[Tensor]], list[float]]]:
    folder = tmp_path_factory.mktemp("ranks")
    forked.run_ranks(__file__, folder)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shares", SHARES, ids=["even", "uneven"])
def test_gradients_are_those_of_the_whole_batch(
    name: str, shares: tuple[int, ...], two_processes: list[tuple[dict[str, list[Tensor]], list[float]]]
) -> None:
    alone = gradients(name, (0, SAMPLES), 0)
    for result, _ in two_processes:
        torch.testing.assert_close(result[f"{name} {shares[1]}"], alone, rtol=1e-10, atol=1e-12)


def test_sums_means_and_the_temperature_are_common(
    two_processes: list[tuple[dict[str, list[Tensor]], list[float]]],
) -> None:
    for rank, (_, sums) in enumerate(two_processes):
        assert sums[:6] == [3.0, 2.0, 0.5, 2, 1, 4]
        assert sums[6:] == [3 * rank, 0, 1, 2, 0, 1, 3, 4, 5, 2, 3]  # shares of three and two columns, side by side


def test_alone_nothing_is_changed() -> None:
    value = torch.tensor(2.0, requires_grad=True)
    assert processes() == 1 and global_sum(value) is value and global_mean(value).item() == 2.0
    columns, first = gathered(torch.ones(2, 3, requires_grad=True))
    assert (least(7, value), columns.shape, columns.requires_grad, first) == (7, (2, 3), False, 0)


def test_the_weight_of_a_share_is_this_thread_s_alone() -> None:
    with weighing(0.5), ThreadPoolExecutor(1) as pool:
        assert (weight(), pool.submit(weight).result()) == (0.5, 1.0)
    assert weight() == 1.0


if __name__ == "__main__":
    _work(int(os.environ["LOCAL_RANK"]), sys.argv[1])
