"""Losses of a run's steps: fetched from the device every few steps, checked, summed and recorded; finite weights."""

import math
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp.device_copies import begin_to_host
from offramp.train import sharding
from offramp.train.log import Metrics
from offramp.train.reporter import Diverged, Reporter

CHECK_EVERY = 20
"""Steps between reads of the losses' values."""
Step = tuple[int, int, float, dict[str, Tensor], dict[str, Tensor]]
"""Epoch, number, learning rate, weighted terms, and values that the method learned."""
Fetched = tuple[Tensor, list[dict[str, Tensor]]]
"""The terms of steps one after the other, and what each logs."""


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
        self.pending: list[Step] = []
        self.arriving: deque[tuple[list[Step], Callable[[], Fetched]]] = deque()
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

    def write_pending(self, epoch: int, step: int, *, more: bool = False) -> None:
        """Fetch pending losses, stop if one is not finite, and record them.

        Several processes use the means over all of them, so that all stop at the same step: a process that stopped
        alone would leave the others waiting.

        Args:
            epoch, step: current position, for the reporter.
            more: steps follow. A GPU gets them at once: what is recorded now are the losses of the call before.
        Raises:
            Diverged: naming step and term.
        """
        if self.pending:
            self.arriving.append((self.pending, self._fetch()))
        self.pending = []
        later = more and self.fabric.device.type == "cuda" and self.fabric.world_size == 1
        while len(self.arriving) > later:
            steps, arrived = self.arriving.popleft()
            self._write(steps, *arrived(), epoch, step)

    def _write(self, steps: list[Step], losses: Tensor, logged: list[dict[str, Tensor]], epoch: int, step: int) -> None:
        """Check, add up and record the losses of steps; in several processes, also whether to stop."""
        fetched = losses.tolist()
        if self.fabric.world_size > 1:
            self.stopping |= fetched.pop() > 0
        numbers, loss, values = iter(fetched), 0.0, dict[str, float]()
        for (at_epoch, at_step, lr, terms, _), learned in zip(steps, logged, strict=True):
            values = dict(zip(terms, numbers, strict=False))
            self._check(values, at_epoch, at_step)
            loss = sum(values.values())
            for name, value in {"loss": loss, **values}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            if self.metrics:
                record = {"kind": "step", "epoch": at_epoch, "step": at_step, "lr": lr, "loss": loss, "terms": values}
                self.metrics.write(record | {name: value.tolist() for name, value in learned.items()})
        self.reporter.stepped(epoch, step, {"loss": loss, **values})

    def _check(self, values: dict[str, float], epoch: int, step: int) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise Diverged(
                f"the loss term {wrong[0]!r} is {values[wrong[0]]} at step {step} (epoch {epoch + 1}); "
                f"{_kept(self.folder)}"
            )

    def _fetch(self) -> Callable[[], Fetched]:
        """Begin to fetch all pending terms; in the same exchange, processes agree on whether to stop."""
        losses = torch.cat([torch.stack(list(terms.values())) for _, _, _, terms, _ in self.pending])
        if self.fabric.world_size > 1:
            stops = losses.new_tensor([float(self.stop.is_set())])
            losses = self.fabric.all_reduce(torch.cat([losses, stops]), reduce_op="mean")
        return begin_to_host((losses, [logged for *_, logged in self.pending]))


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
