"""A batch in parts: the step of the whole batch for every method whose losses allow it; all others are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from offramp.config import Config, build_method, build_net, flat, prepare_objective, resolve
from offramp.lookup import ParameterError
from offramp.losses.distributed import weighing, weight
from offramp.methods import available
from offramp.outputs import Batch
from offramp.testing import SilentReporter, patterns
from offramp.train import run_dir
from offramp.train.accumulation import micro_batches
from offramp.train.check import refuse
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

OWN_STEPS = ("hdkd", "hdbt", "hmsdnet", "l2w", "imta", "dml-updates", "ztw-fit")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in available()),
    ("dbt", {"rising": False}),
    ("dense", {"rising": True}),
    ("byot", {"features": "norm", "adapt": "all"}),
    ("byot", {"adapt": "all", "beta": 0.1}),
    ("boostnet", {"equal": True}),
    ("dml", {"updates": "alternating"}),
    ("ztw", {"fit": "val"}),
    ("eed", {"weights": "learned", "beta": 0.0}),
]
REFUSED = {
    **dict.fromkeys(OWN_STEPS, "this method has steps of its own, which need the whole batch"),
    "dbt": "this method needs the whole batch: its temperature rises by the confidence of every batch",
    "dense-rising": "its temperature rises by the confidence of every batch",
    "byot-features": "features=norm is a norm over all its samples",
    "boostnet-equal": "equal scales the losses by averages of every batch",
}


SMALL: dict[str, Any] = {"net": "wrn16-4", "width": 2, "net_options": {"blocks": 1}}


def ran(folder: Path, method: str, hyper: dict[str, Any], **options: Any) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses of steps on 22 samples: two whole batches and one of six samples; batch norms are still."""
    torch.manual_seed(0)
    values = {"epochs": 3, "batch_size": 8, "lr": 0.005, "precision": "32", "device": "cpu", "clip": 1.0, **SMALL}
    config = resolve(Config(method=method, method_options=hyper, **{**values, **options}))
    data, built = patterns(22, 8, 4, 16), build_method(config)
    net = build_net(config, built, classes=4, shape=data.shape)
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.forward = lambda maps, part=part: part.weight.view(-1, *[1] * (maps.dim() - 2)) * maps  # type: ignore
    prepare_objective(built, net, data.shape)
    folder.mkdir()
    Loop(make_fabric(config), folder, config, net, built, data, SilentReporter()).run(resume=False)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_file(folder / "last.safetensors"), [record["loss"] for record in records if record["kind"] == "step"]


def named(method: str, hyper: dict[str, Any]) -> str:
    return "-".join((method, *list(hyper)[:1]))


ALLOWED = [(name, hyper) for name, hyper in VARIANTS if named(name, hyper) not in REFUSED]


@pytest.mark.parametrize(
    ("method", "hyper"),
    [
        pytest.param(*each, id=named(*each), marks=() if each[0] in ("muse", "byot") else pytest.mark.full)
        for each in ALLOWED
    ],
)
def test_a_batch_in_parts_is_the_whole_batch(tmp_path: Path, method: str, hyper: dict[str, Any]) -> None:
    whole, losses = ran(tmp_path / "whole", method, hyper)
    divided, same = ran(tmp_path / "divided", method, hyper, accumulate=4)
    assert same == pytest.approx(losses, rel=1e-5)
    for name, tensor in whole.items():
        torch.testing.assert_close(divided[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("method", "hyper"), [each for each in VARIANTS if each not in ALLOWED])
def test_what_needs_the_whole_batch_is_refused(method: str, hyper: dict[str, Any]) -> None:
    config = resolve(Config(method=method, method_options=hyper, width=4, accumulate=2, epochs=3, optimizer="sgd"))
    data, built = patterns(22, 8, 4, 16), build_method(config)
    net = build_net(config, built, classes=4, shape=data.shape)
    with pytest.raises(ParameterError, match=f"{REFUSED[named(method, hyper)]}: take accumulate=1, got 2"):
        refuse(built, config, net, data)


def test_parts_differ_by_one_sample_and_none_has_one() -> None:
    def sizes(samples: int, number: int) -> list[int]:
        batch = Batch(torch.zeros(samples, 1), torch.zeros(samples), torch.arange(samples))
        cut = micro_batches(batch, number)
        assert torch.cat([part.ids for part in cut]).tolist() == list(range(samples))
        return [len(part.ids) for part in cut]

    assert [sizes(*each) for each in [(8, 4), (7, 3), (5, 4), (3, 2), (1, 2)]] == [[2] * 4, [2, 2, 3], [2, 3], [3], [1]]
    with weighing(4 / 3.5):  # the other process has three samples, which are not divided: nor are these
        assert sizes(4, 2) == [4] and weight() == 4 / 3.5
    with weighing(3 / 3.5):
        assert sizes(3, 2) == [3]


def test_a_run_goes_on_in_other_parts(tmp_path: Path) -> None:
    config = Config(width=4, epochs=1, accumulate=2)
    stored = flat(config)
    assert stored["accumulate"] == 2 and "accumulate" not in flat(Config())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert run_dir.check_folder(tmp_path, flat(replace(config, accumulate=4, devices=2)), resume=True)
