"""Losses of a run's steps: fetched from the device every few steps, checked, summed and recorded; finite weights."""

import math
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp.train import sharding
from offramp.train.log import Metrics
from offramp.train.reporter import Diverged, Reporter

CHECK_EVERY = 20
"""Steps between reads of the losses' values (each read waits for the device)."""


class Record:
    """The losses of a run's steps, and whether it must stop.

    `sums` are the terms of this epoch's steps so far; `metrics` is where records go, in the first process only. `stop`
    is set by this process, `stopping` once all processes have agreed.

    Args:
        folder: of the run, named in the error if it diverges.
    """

    def __init__(self, fabric: Any, folder: Path, reporter: Reporter) -> None:
        self.fabric, self.folder, self.reporter = fabric, folder, reporter
        self.metrics: Metrics | None = None
        self.pending: list[tuple[int, int, float, dict[str, Tensor], dict[str, Tensor]]] = []
        self.sums: dict[str, float] = {}
        self.stop = threading.Event()
        self.stopping = False

    @property
    def full(self) -> bool:
        """Whether it is time to read the losses."""
        return len(self.pending) >= CHECK_EVERY

    def add(self, epoch: int, step: int, lr: float, terms: dict[str, Tensor], logged: dict[str, Tensor]) -> None:
        """Keep the weighted terms of a step and the values that the method learned, still on the device."""
        self.pending.append((epoch, step, lr, terms, logged))

    def write_pending(self, epoch: int, step: int) -> None:
        """Fetch pending losses, stop if one is not finite, and record them.

        Several processes use the means over all of them, so that all stop at the same step: a process that stopped
        alone would leave the others waiting.

        Args:
            epoch, step: current position, for the reporter.
        Raises:
            Diverged: naming step and term.
        """
        fetched = iter(self._fetch())
        loss, values = 0.0, dict[str, float]()
        for at_epoch, at_step, lr, terms, logged in self.pending:
            values = dict(zip(terms, fetched, strict=False))
            self._check(values, at_epoch, at_step)
            loss = sum(values.values())
            for name, value in {"loss": loss, **values}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            if self.metrics:
                record = {"kind": "step", "epoch": at_epoch, "step": at_step, "lr": lr, "loss": loss, "terms": values}
                self.metrics.write(record | {name: value.tolist() for name, value in logged.items()})
        if self.pending:
            self.reporter.stepped(epoch, step, {"loss": loss, **values})
        self.pending = []

    def _check(self, values: dict[str, float], epoch: int, step: int) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise Diverged(
                f"the loss term {wrong[0]!r} is {values[wrong[0]]} at step {step} (epoch {epoch + 1}); "
                f"{_kept(self.folder)}"
            )

    def _fetch(self) -> list[float]:
        """The values of all pending terms; in the same exchange, processes agree on whether to stop."""
        if not self.pending:
            return []
        local = torch.cat([torch.stack(list(terms.values())) for _, _, _, terms, _ in self.pending])
        if self.fabric.world_size == 1:
            return local.tolist()
        stops = local.new_tensor([float(self.stop.is_set())])
        means: list[float] = self.fabric.all_reduce(torch.cat([local, stops]), reduce_op="mean").tolist()
        self.stopping |= means.pop() > 0
        return means


def check_weights(net: nn.Module, step: int, folder: Path) -> None:
    """Refuse weights that are not finite.

    Args:
        step: optimizer steps taken, for the message.
        folder: of the run.
    Raises:
        Diverged: naming the weight.
    """
    weights = dict(net.named_parameters())
    finite = torch.stack([torch.isfinite(sharding.local(weight)).all() for weight in weights.values()])
    finite = sharding.everywhere(finite) if sharding.is_sharded(net) else finite
    for name, is_finite in zip(weights, finite.tolist(), strict=True):  # one wait for all
        if not is_finite:
            raise Diverged(f"the weight {name} is no longer finite at step {step}; {_kept(folder)}")


def _kept(folder: Path) -> str:
    """The end of the message about a diverged run: what was kept, and what may help."""
    place = folder / "checkpoints"
    left = f"the last good checkpoint is kept in {place}" if any(place.glob("step-*")) else "there is no checkpoint yet"
    return f"{left}. A lower lr or clip=1 may help"
