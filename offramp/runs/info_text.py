"""A network as text: what `offramp info` prints, without colours."""

from typing import TYPE_CHECKING

from offramp.config.plan import gains_text
from offramp.measure.text_table import prose, text_table
from offramp.measure.units import count

if TYPE_CHECKING:
    from offramp.runs.info import NetworkInfo, NetworksInfo


def network_text(info: "NetworkInfo") -> str:
    """Notes, the drawing with its table of costs, and how cheap early exit can get."""
    from offramp.measure.network_summary import drawing_text

    return "\n".join([*info.notes, drawing_text(info.summary), *cheapest_lines(info)])


def cheapest_lines(info: "NetworkInfo") -> list[str]:
    """How many times cheaper than the plain network early exit can get; nothing without early exits."""
    if not info.cheapest:
        return []
    text = f"early exit is {gains_text(info.cheapest)} (if every image takes exit 1, with exits at the same places)"
    return [prose(text)]


def networks_text(info: "NetworksInfo") -> str:
    """Networks that are trained together: parameters and operations of each one and of all."""
    columns = zip(info.outputs, info.parameters["outputs"], info.macs, strict=True)
    rows = [[name, count(size), count(macs)] for name, size, macs in columns]
    rows.append(["everything that is trained", count(info.cost["parameters"]), count(info.cost["macs"])])
    shape = "×".join(map(str, info.shape))
    title = f"{info.method} on {info.net}, {info.classes} classes, input {shape}"
    return text_table(title, ["", "parameters", "MACs"], rows)
