"""Every combination of the values of several options, for `compare` and `sweep`."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any, TypeVar

from offramp.config import Config, check_key, flat, unflat
from offramp.lookup import ParameterError

T = TypeVar("T")
Grid = Mapping[str, Sequence[Any]]
"""Values of options by name, such as {"net": ["resnet18", "resnet34"], "lr": [0.1, 0.05]}."""
NO_GRID: Grid = MappingProxyType({})


def variants(config: Config, grid: Grid, *, methods: bool = False) -> dict[str, Config]:
    """The configuration at every point of a grid, by the point's name: `net=resnet18,branch=sketch`; one for no grid.

    Args:
        methods: whether method, its parameters and the seed may be axes, too.
    Raises:
        ValueError: for an option that does not exist, with the nearest, a value twice, or what is no axis.
    """
    for key, values in grid.items():
        kind = key.partition(".")[0]
        if kind in ("method", "seed") and not methods:
            raise ParameterError(f"grid cannot vary {key}: methods and seeds have arguments of their own", "grid")
        _as_parameter(check_key, key, "grid")
        if not values or len({str(value) for value in values}) < len(values):
            raise ParameterError(
                f"grid {key} needs values, each once, got {','.join(map(str, values)) or 'none'}", "grid"
            )
    base = {key: value for key, value in flat(config).items() if methods or not key.startswith("method.")}
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if not grid:
        return {"": config}
    return {
        ",".join(f"{key}={value}" for key, value in point.items()): _as_parameter(unflat, {**base, **point}, "grid")
        for point in points
    }


def _as_parameter(read: Callable[..., T], *values: Any) -> T:
    """What a reader of configurations returns; its errors are about an argument, not a file."""
    try:
        return read(*values)
    except ValueError as error:
        raise ParameterError(str(error), "grid") from None
