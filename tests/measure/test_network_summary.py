"""The drawing of `offramp info`: right numbers, at most 80 columns, JSON-friendly."""

import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console

from offramp import branches
from offramp.measure import cost
from offramp.measure.network_summary import NetworkSummary, describe, draw
from offramp.models import resnet
from offramp.net import MultiExitNet, attach, plain


def network(name: str, branch: str) -> MultiExitNet:
    with torch.device("meta"):
        backbone = resnet.build(name, classes=100)
        return attach(backbone, lambda backbone, exit: branches.find(branch).build(backbone, exit, 100))


def drawn(description: NetworkSummary) -> str:
    """On a terminal wider than needed, so that a line that is too long shows."""
    console = Console(width=200, file=io.StringIO(), force_terminal=False)
    console.print(draw(description))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_description_holds_the_costs() -> None:
    net = network("resnet18", "sketch")
    told = describe(net, (3, 32, 32), "resnet18 + sketch")
    assert [stage.blocks for stage in told.stages] == ["Stem, 2 × BasicBlock", *["2 × BasicBlock"] * 3]
    assert [stage.shape for stage in told.stages] == ["64×32×32", "128×16×16", "256×8×8", "512×4×4"]
    assert told.exits[1].chain == ("128×16×16", "256×8×8", "512×4×4")
    assert [line.macs for line in told.exits] == cost.macs(net, (3, 32, 32))
    assert [line.macs_cumulative for line in told.exits] == cost.macs_cumulative(net, (3, 32, 32))
    assert told.exits[-1].share == 1 and told.classes == 100 and {line.feature_width for line in told.exits} == {512}
    assert told.parameters == sum(p.numel() for p in net.parameters())
    assert json.loads(json.dumps(dataclasses.asdict(told)))["exits"][0]["branch_parameters"] == 4_873_572


@pytest.mark.parametrize(("net", "branch"), [("resnet50", "sketch"), ("resnet18", "beed"), ("resnet18", "byot")])
def test_drawing_fits_80_columns_and_cuts_nothing(net: str, branch: str) -> None:
    told = describe(network(net, branch), (3, 32, 32), f"{net} + {branch}")
    text = drawn(told)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    for word in (net, branch, "├─▶ exit 1", "├─▶ exit 4 (final)", "stage 4", "macs_cumulative", "eed_flops"):
        assert word in text
    together = " ".join(text.split())
    for line in told.exits:
        assert f"{line.macs / 1e6:,.1f} M" in together and line.chain[-1] in together


def test_a_network_without_exits_is_drawn_too() -> None:
    with torch.device("meta"):
        net = plain(resnet.build("resnet18", classes=10, width=4))
    text = drawn(describe(net, (3, 32, 32)))
    assert "Stem, 8 × BasicBlock" in text and "exit 1 (final)" in text and "without early exits" not in text
