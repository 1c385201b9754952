"""A summary of a network with exits, as values and as a drawing: the backbone downwards, exits to the right."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby, zip_longest
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from offramp.measure import cost
from offramp.meta_device import Shape, blank, run_on_meta, shape_of, written
from offramp.net import MultiExitNet
from offramp.protocols import DescribedBlock

_NBSP = "\N{NO-BREAK SPACE}"
_BOX, _RIGHT = 24, 47  # characters inside the trunk's boxes, and beside them: 80 columns together


@dataclass(frozen=True)
class StageLine:
    """One stage of the backbone: its blocks in words, its output shape, its parameters and multiply-adds."""

    blocks: str
    shape: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class ExitLine:
    """One exit: the shapes along its branch, the input width of its classifier, its own cost and the cost up to it.

    `branch_parameters` and `branch_macs` are the branch's own; `share` is `macs` of the exit over `macs` of the last;
    the cost conventions are those of `offramp.measure.cost`.
    """

    chain: tuple[str, ...]
    feature_width: int
    branch_parameters: int
    branch_macs: int
    macs: int
    share: float
    macs_cumulative: int
    msdnet_ops: int
    eed_flops: float


@dataclass(frozen=True)
class NetworkSummary:
    """Everything that `offramp info` shows of a network; plain values for `dataclasses.asdict` and JSON."""

    title: str
    input: str
    classes: int
    parameters: int
    parameters_plain: int
    stages: tuple[StageLine, ...]
    exits: tuple[ExitLine, ...]


def describe(
    net: MultiExitNet, shape: tuple[int, int, int], title: str = "", *, running: MultiExitNet | None = None
) -> NetworkSummary:
    """Measure a network for one input of shape (channels, height, width); nothing is computed (meta device).

    Args:
        running: the network whose multiply-adds count, if it is not run as it is trained; see `offramp.split.lazy`.
    Raises:
        ValueError: if the network cannot take inputs of this shape.
    """
    pieces = cost.measure(running or net, shape)
    sizes = cost.parameters(net)
    stages: list[StageLine] = []
    chains: list[tuple[tuple[str, ...], int, int]] = []
    state: Any = blank(net, shape)
    carry: Any = ()
    for stage, branch, macs in zip(net.stages, net.branches, pieces.stages, strict=True):
        state = run_on_meta(stage, state)
        logits, feature, _, following = run_on_meta(branch, state, carry)
        stages.append(StageLine(_blocks(stage), written(shape_of(state)), _size(stage), macs))
        chains.append((_chain(branch, state), feature.shape[1], logits.shape[1]))
        carry = following
    exits = _exits(net, shape, pieces, chains)
    return NetworkSummary(title, written(shape), chains[-1][2], sizes.total, sizes.main, tuple(stages), exits)


def _exits(
    net: MultiExitNet, shape: tuple[int, int, int], pieces: cost.Pieces, chains: list[tuple[tuple[str, ...], int, int]]
) -> tuple[ExitLine, ...]:
    macs = [trunk + branch for trunk, branch in zip(accumulate(pieces.stages), pieces.branches, strict=True)]
    cumulative = accumulate(trunk + branch for trunk, branch in zip(pieces.stages, pieces.branches, strict=True))
    columns = zip(
        net.branches,
        chains,
        pieces.branches,
        macs,
        cumulative,
        cost.msdnet_ops(net, shape),
        cost.eed_flops(net, shape),
        strict=True,
    )
    return tuple(
        ExitLine(chain, width, _size(branch), branch_macs, to_here, to_here / macs[-1], as_run, ops, flops)
        for branch, (chain, width, _), branch_macs, to_here, as_run, ops, flops in columns
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _blocks(stage: nn.Module) -> str:
    """The blocks of a stage in words: "Stem, 3 × Bottleneck"."""
    kinds = [
        block.block_kind if isinstance(block, DescribedBlock) else type(block).__name__
        for block in (stage if isinstance(stage, nn.Sequential) else [stage])
    ]
    runs = [(kind, len(list(same))) for kind, same in groupby(kinds)]
    return ", ".join(kind if count == 1 else f"{count} × {kind}" for kind, count in runs)


def _chain(branch: nn.Module, state: Any) -> tuple[str, ...]:
    """The shapes along a branch's body, repeated ones once; only the input shape if the body is not a sequence."""
    shapes: list[Shape | tuple[Shape, ...]] = [shape_of(state)]
    body = getattr(branch, "body", None)
    for block in body if isinstance(body, nn.Sequential) else ():
        state = run_on_meta(block, state)
        if shape_of(state) != shapes[-1]:
            shapes.append(shape_of(state))
    return tuple(written(shape) for shape in shapes)


def drawing_text(description: NetworkSummary) -> str:
    """What `draw` shows, as plain text without colours."""
    console = Console(width=80, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(draw(description), soft_wrap=True)
    lines = capture.get().rstrip().splitlines()
    return "\n".join(line.rstrip() for line in lines)


def draw(description: NetworkSummary) -> RenderableType:
    """The network as a drawing and a table of costs, at most 80 columns wide."""
    plain = f" ({_count(description.parameters_plain)} without early exits)" if len(description.exits) > 1 else ""
    lines = [
        Text(f"  {description.title or 'network'}", style="bold"),
        Text(f"  {_count(description.parameters)} parameters{plain} · input {description.input}"),
        Text(),
    ]
    last = len(description.stages)
    for number, (stage, leaving) in enumerate(zip(description.stages, description.exits, strict=True), 1):
        lines.extend(_row(number, stage, leaving, description.classes, last))
    return Group(*lines, _costs(description))


def _row(number: int, stage: StageLine, leaving: ExitLine, classes: int, last: int) -> Iterator[Text]:
    """One stage's box with its exit beside it."""
    parameters_line = f"{_count(stage.parameters)} parameters"
    box = [
        line for entry in (stage.blocks, stage.shape, parameters_line, _macs(stage.macs)) for line in _wrap(entry, _BOX)
    ]
    way = " → ".join([*leaving.chain[1:], str(leaving.feature_width), f"{classes} classes"])
    name = f"exit {number}" + (" (final)" if number == last else "")
    added = f"{_count(leaving.branch_parameters)} parameters · {_macs(leaving.branch_macs)}"
    corners = "┌┐" if number == 1 else "├┤"
    yield Text(f"  {corners[0]}{f' stage {number} ':─<{_BOX + 2}}{corners[1]}")
    for row, (left, right) in enumerate(zip_longest(box, [name, *_wrap(way, _RIGHT), added], fillvalue="")):
        edge, style = ("├─▶ ", "bold green") if row == 0 else ("│   ", "")
        yield Text.assemble(f"  │ {left:<{_BOX}} ", (f"{edge}{right}".rstrip(), style))
    if number == last:
        yield Text(f"  └{'─' * (_BOX + 2)}┘")


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most this width; an arrow stays with the shape after it, a number with its unit."""
    kept = text.replace("→ ", f"→{_NBSP}").replace(" classes", f"{_NBSP}classes")
    return [line.replace(_NBSP, " ") for line in textwrap.wrap(kept, width)]


def _costs(description: NetworkSummary) -> Table:
    """All exits by all conventions: from the input to each exit, for one sample."""
    table = Table(box=SIMPLE_HEAD, caption="  from the input to each exit, one sample", caption_justify="left")
    for column in ("exit", "macs", "of final", "macs_cumulative", "msdnet_ops", "eed_flops"):
        table.add_column(column, justify="right")
    for number, line in enumerate(description.exits, 1):
        counts = (_mega(line.macs_cumulative), _mega(line.msdnet_ops), f"{line.eed_flops:.2f} G")
        table.add_row(str(number), _mega(line.macs), f"{line.share:.1%}", *counts)
    return table


def _count(number: int) -> str:
    return f"{number / 1e6:,.3f} M" if number >= 100_000 else f"{number:,}"


def _mega(number: int) -> str:
    """In millions, as in the papers' tables; small numbers in thousands or as they are."""
    if number >= 1e6:
        return f"{number / 1e6:,.1f} M"
    return f"{number / 1e3:,.1f} k" if number >= 1e3 else f"{number:,} "


def _macs(number: int) -> str:
    return f"{_mega(number)}MAC"
