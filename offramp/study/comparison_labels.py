"""Titles, headings and table cells of a comparison, the same in the terminal, in files and in figures."""

from collections.abc import Sequence

from offramp.study.comparison import METRICS, Comparison, MethodRow
from offramp.text import quantity


def title(comparison: Comparison) -> str:
    """What was compared, in a line: network, exits, data, epochs, on what it was evaluated, and by which device."""
    return f"{trained(comparison)}; {comparison.common.get('evaluated')}, {computed_on(comparison)}"


def trained(comparison: Comparison) -> str:
    """What all runs share in training: network, exits, data and epochs."""
    config = comparison.common
    width = f" width {config['net.width']}" if config.get("net.width") else ""
    few = f", {config['per-class']} images per class" if config.get("per-class") else ""
    apart = "".join(f", {key} {value}" for key, value in comparison.apart.items())
    return (
        f"{config.get('net')}{width}, {config.get('branch')} exits, {config.get('data')}{few}, "
        f"{quantity(config['epochs'], 'epoch')}{apart}"
    )


def computed_on(comparison: Comparison) -> str:
    """The devices of the figures: `on cpu`, `on cpu and cuda`."""
    return f"on {' and '.join(comparison.devices) or 'an unknown device'}"


def heading(comparison: Comparison) -> str:
    """The heading of the first table."""
    metric = METRICS[comparison.metric]
    return f"{title(comparison)}: {metric} in percent, mean ± standard deviation over seeds (n - 1)"


def mean_cells(row: MethodRow) -> list[str]:
    """Percent: `57.03 ± 0.21`, mean and standard deviation; `57.03` of one seed."""
    return [
        "–" if mean is None else f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
        for mean, deviation in zip(row.mean, row.deviation, strict=True)
    ]


def difference_cells(row: MethodRow, brackets: bool) -> list[str]:
    """Points: `+0.42 [-0.10, +0.94]`, or `+0.42 ± 0.52` without brackets; `+0.42` of one seed."""
    return [
        _difference_cell(difference, interval, brackets)
        for difference, interval in zip(row.difference, row.interval95, strict=True)
    ]


def _difference_cell(difference: float | None, interval: list[float] | None, brackets: bool) -> str:
    if difference is None:
        return "–"
    if interval is None:
        return f"{100 * difference:+.2f}"
    low, high = interval
    if brackets:
        return f"{100 * difference:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{100 * difference:+.2f} ± {50 * (high - low):.2f}"


def counted(seeds: Sequence[int]) -> str:
    """The number of seeds of a figure: `3`, or `one seed`, for which there is no interval."""
    return "one seed" if len(seeds) == 1 else str(len(seeds))


def cost_heading(comparison: Comparison) -> str:
    """The heading of the table of costs."""
    return (
        f"Early exit on test, thresholds fitted on cal: mean operations and milliseconds ({computed_on(comparison)}) "
        "where accuracy on cal is that of the plain network, and 0.5 points "
        f"below it, with points of accuracy on test against it ({comparison.plain}); area under the budgeted curve; ± "
        "half of the 95 % interval over seeds"
    )


QUALITY = (
    "How well the score of each exit ranks images by whether the exit is right (area under the ROC curve) / "
    "calibration error (ECE) in percent, means over seeds"
)


def exit_columns(comparison: Comparison) -> list[str]:
    """The names of the exits among the columns."""
    return [column for column in comparison.columns if column != "ensemble"]
