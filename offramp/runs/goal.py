"""The target of `calibrate`: exactly one goal, and the cost that is minimised while it is reached."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from offramp.argument_types import check_fields
from offramp.lookup import ParameterError

Unit = Literal["macs", "ms"]
"""Costs: multiply-adds or milliseconds, per image."""
Runtime = Literal[
    "torch", "torch-bf16", "torch-graph", "torch-bf16-graph", "onnx", "onnx-cuda", "onnx-tensorrt", "openvino"
]
"""Where milliseconds are measured."""
Score = Literal["confidence", "margin", "entropy", "patience", "learned"]
AnswerRule = Literal["exit", "arithmetic", "geometric", "sum"]
"""The values of `ExitPolicy.score` and `ExitPolicy.answer`."""
GOALS = ("macs", "ms", "max_drop", "target_accuracy", "risk")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One goal of `offramp.calibrate`: `Goal(macs=0.5)`. Shares are numbers from 0 to 1.

    Attributes:
        macs: mean multiply-adds per image: up to 1 a share of the plain network's, above 1 a count.
        ms: mean milliseconds per image at `batch_size` in `runtime`.
        max_drop: share of all images by which accuracy may be lower than the plain network's (0.005: half a point).
        target_accuracy: accuracy to reach, a share (0.75: 75 %).
        risk: bound on the expected accuracy lost against the plain network, a share (0.01: one point).
        delta: with `risk`: the bound holds with probability 1 - delta over the calibration images.
        save: cost to minimise if the goal is not a cost: `macs` (the default) or `ms`.
        batch_size: batch size at which milliseconds are measured.
        runtime: runtime in which milliseconds are measured; None: torch in the precision of the run.
        never_slower_at: batch sizes at which the policy may take at most 1.02 times the milliseconds of the plain
            network; exits are disabled until this holds.
        temperatures: divisors of the logits: one number for all exits, one number per exit, or `fit`: fitted by
            likelihood on cal.
    Raises:
        ParameterError: if there is not exactly one goal, or naming the parameter whose value is invalid.
    """

    macs: int | float | None = None
    ms: int | float | None = None
    max_drop: int | float | None = None
    target_accuracy: int | float | None = None
    risk: int | float | None = None
    delta: int | float | None = None
    save: Unit | None = None
    batch_size: int = 64
    runtime: Runtime | None = None
    never_slower_at: tuple[int, ...] = ()
    temperatures: int | float | Sequence[int | float] | Literal["fit"] = 1.0

    def __post_init__(self) -> None:
        self._check_one()
        self._check("macs", "be a share of the plain network such as 0.5, or a count such as 250e6", 0.0, math.inf)
        self._check("ms", "be a positive number of milliseconds per image", 0.0, math.inf)
        if self.max_drop != 0:
            self._check("max_drop", "be a share of accuracy in [0, 1), such as 0.005 for half a point", 0.0, 1.0)
        if self.target_accuracy != 1:
            self._check("target_accuracy", "be a share in (0, 1], such as 0.75", 0.0, 1.0)
        self._check("risk", "be a share in (0, 1), such as 0.01", 0.0, 1.0)
        self._check("delta", "be a probability in (0, 1), such as 0.05", 0.0, 1.0)
        check_fields(self)
        self._check("batch_size", "be at least 1", 0.0, math.inf)
        if any(size < 1 for size in self.never_slower_at):
            sizes = ", ".join(map(str, self.never_slower_at))
            raise ParameterError(f"never_slower_at takes batch sizes from 1 on, got {sizes}", "never_slower_at")
        self._check_pairs()

    def _check_one(self) -> None:
        goals = [name for name in GOALS if getattr(self, name) is not None]
        if len(goals) != 1:
            *first, last = GOALS
            got = " and ".join(goals) or "none"
            raise ParameterError(f"exactly one goal is needed, {', '.join(first)} or {last}; got {got}", *GOALS)

    def _check(self, name: str, rule: str, above: int | float, below: int | float) -> None:
        value = getattr(self, name)
        number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (number and above < value < below):
            raise ParameterError(f"{name} must {rule}, got {value!r}", name)

    def _check_pairs(self) -> None:
        if self.delta is not None and self.risk is None:
            raise ParameterError("delta goes with risk, which is missing", "delta", "risk")
        if self.save is not None and self.unit != self.save:
            raise ParameterError(f"save={self.save} contradicts {self.unit}", "save", self.unit)
        if self.runtime is not None and self.unit != "ms" and not self.never_slower_at:
            raise ParameterError(
                f"runtime={self.runtime} is where milliseconds are measured: it goes with ms, save=ms or "
                "never_slower_at",
                *("runtime", "save", "never_slower_at"),
                *(("ms",) if self.runtime else ()),
            )

    @property
    def unit(self) -> Unit:
        """What is counted as the cost: macs or ms."""
        if self.macs is not None or self.ms is not None:
            return "macs" if self.macs is not None else "ms"
        return self.save or "macs"

    def budget(self, plain: int | float) -> int | float | None:
        """The largest cost allowed, from the cost of the plain network; None if the goal is not a cost."""
        if self.macs is None:
            return self.ms
        return self.macs * plain if self.macs <= 1 else self.macs

    def temperature_list(self, exits: int) -> tuple[int | float, ...]:
        """The temperature of each exit, () if they are to be fitted.

        Raises:
            ParameterError: if they are neither `fit` nor one positive number, or one for each exit.
        """
        if self.temperatures == "fit":
            return ()
        values = self.temperatures if isinstance(self.temperatures, Sequence) else (self.temperatures,)
        numbers = [value for value in values if not isinstance(value, str) and 0 < value < math.inf]
        if len(values) not in (1, exits) or len(numbers) < len(values):
            raise ParameterError(
                f"temperatures must be `fit`, a positive number, or {exits} of them, one per exit, "
                f"got {self.temperatures!r}",
                "temperatures",
            )
        return tuple(numbers) * exits if len(values) == 1 else tuple(numbers)
