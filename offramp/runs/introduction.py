"""The lines that a training run shows before its first epoch."""

from textwrap import fill
from typing import TYPE_CHECKING, Any

from offramp.config import ResolvedConfig
from offramp.config.plan import cheapest, gains_text
from offramp.measure.text_table import WIDTH, prose
from offramp.runs.reporting import SILENT, Reporter
from offramp.text import as_typed

if TYPE_CHECKING:
    from offramp.data.splits import DataSet
    from offramp.net import MultiExitNet


def introduce(reporter: Reporter, config: ResolvedConfig, net: Any, data: "DataSet", notes: tuple[str, ...]) -> None:
    """What is trained on what, line by line."""
    from offramp.net import MultiExitNet

    chain = isinstance(net, MultiExitNet)
    network = f"{config.net} with {config.branch} exits" if chain else f"{config.net}: {', '.join(net.names)}"
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    reporter.note(prose(f"{config.method} on {network}; {config.data}: {sizes}"))
    for note in notes:
        reporter.note(prose(note))
    for kind in ("net", "branch", "method"):
        values = ", ".join(f"{key} {as_typed(value)}" for key, value in config.options.get(kind, {}).items())
        if values:
            reporter.note(fill(f"{kind}: {values}", WIDTH, initial_indent="  ", subsequent_indent="    "))
    if chain and net.exits > 1 and reporter is not SILENT:
        reporter.note(prose(f"early exit is {gains_text(_gains(config, net, data))} (if every image takes exit 1)"))
    reporter.note(f"  {config.device}, {config.precision}, seed {config.seed}")


def _gains(config: ResolvedConfig, net: "MultiExitNet", data: "DataSet") -> dict[str, float]:
    """How many times cheaper early exit can get, by structure.

    External models take seconds to cut: other structures than their own are counted if they are fine-tuned, which takes
    longer still.
    """
    from offramp.measure import cost
    from offramp.models import is_external

    macs = cost.macs(net, data.shape)
    gains = {config.branch: macs[-1] / macs[0]}
    if is_external(config.net) and not config.pretrained:
        return gains
    return gains | cheapest(config, len(data.classes), data.shape)
