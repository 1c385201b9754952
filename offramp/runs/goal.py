"""What a policy is to achieve, as it is typed: exactly one goal, and the rule by which samples leave."""

from dataclasses import dataclass
from typing import Literal

from offramp.lookup import NotUnderstood

GOALS = ("macs", "ms", "max_drop", "target_accuracy", "risk")


@dataclass(frozen=True)
class Wish:
    """One goal and its rule, as typed; see `offramp calibrate --help`.

    Raises:
        NotUnderstood: if there is not one goal, and naming the option whose value makes no sense.
    """

    macs: str | None = None
    ms: float | None = None
    max_drop: float | None = None
    target_accuracy: float | None = None
    risk: float | None = None
    delta: float | None = None
    save: Literal["macs", "ms"] | None = None
    batch_size: int = 64
    runtime: str | None = None
    temperatures: str = "1"

    def __post_init__(self) -> None:
        named = {goal: f"--{goal.replace('_', '-')}" for goal in GOALS}
        given = [name for goal, name in named.items() if getattr(self, goal) is not None]
        if len(given) != 1:
            *first, last = named.values()
            raise NotUnderstood(
                f"exactly one goal is needed, {', '.join(first)} or {last}; got {' and '.join(given) or 'none'}"
            )
        if self.macs is not None:
            parse_macs(self.macs, 1.0)
        if self.ms is not None and not 0 < self.ms < float("inf"):
            raise NotUnderstood(f"--ms takes a positive number of milliseconds per image, got {self.ms}")
        if self.max_drop is not None and not 0 <= self.max_drop < 100:
            raise NotUnderstood(f"--max-drop takes points of accuracy in [0, 100), such as 0.5, got {self.max_drop}")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 100:
            raise NotUnderstood(f"--target-accuracy takes percent in (0, 100], such as 75, got {self.target_accuracy}")
        if self.risk is not None and not 0 < self.risk < 1:
            raise NotUnderstood(f"--risk takes a probability in (0, 1), such as 0.01, got {self.risk}")
        if self.delta is not None and self.risk is None:
            raise NotUnderstood("--delta goes with --risk, which is missing: --risk 0.01 --delta 0.05")
        if self.delta is not None and not 0 < self.delta < 1:
            raise NotUnderstood(f"--delta takes a probability in (0, 1), such as 0.05, got {self.delta}")
        if self.batch_size < 1:
            raise NotUnderstood(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.save is not None and self.unit != self.save:
            raise NotUnderstood(f"--save {self.save} contradicts --{self.unit}")
        if self.runtime is not None and self.unit != "ms":
            raise NotUnderstood(
                f"--runtime {self.runtime} is where milliseconds are measured: it goes with --ms or --save ms"
            )

    @property
    def unit(self) -> str:
        """What is counted as the cost: macs or ms."""
        if self.macs is not None or self.ms is not None:
            return "macs" if self.macs is not None else "ms"
        return self.save or "macs"

    def temperature_list(self, exits: int) -> tuple[float, ...]:
        """The temperature of each exit, () where they are to be fitted.

        Raises:
            NotUnderstood: if they are neither `fit` nor one positive number, or one for each exit.
        """
        if self.temperatures == "fit":
            return ()
        try:
            given = tuple(float(part) for part in self.temperatures.split(","))
        except ValueError:
            given = ()
        if len(given) not in (1, exits) or any(not 0 < value < float("inf") for value in given):
            raise NotUnderstood(
                f"--temperatures takes `fit`, a positive number, or {exits} of them with commas between, one per exit, "
                f"got {self.temperatures!r}"
            )
        return given * exits if len(given) == 1 else given


def parse_macs(text: str, plain: float) -> float:
    """`0.5` -> half of plain; `250M` -> 250e6.

    Raises:
        NotUnderstood: if it is neither.
    """
    suffixes = {"k": 1e3, "M": 1e6, "G": 1e9}
    number, factor = (text[:-1], suffixes[text[-1]]) if text[-1:] in suffixes else (text, 1.0)
    try:
        value = float(number) * factor
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise NotUnderstood(f"--macs takes a fraction of plain such as 0.5, or a count such as 250M, got {text!r}")
    return value * plain if factor == 1.0 and value <= 1 else value
