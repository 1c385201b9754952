"""Epochs on Fabric: every step recorded, every state restorable to the bit, the best and the last epoch kept."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp.data.splits import DataSet
from offramp.losses.distributed import weighing
from offramp.methods._method import Method
from offramp.outputs import Batch
from offramp.protocols import LoggingObjective
from offramp.train import checkpoint, log, optim, phases, sharding, soft_labels
from offramp.train.batch_norms import over_all_processes
from offramp.train.check import refuse
from offramp.train.compiling import uncompiled
from offramp.train.depthwise import fast_gradients, keep_float32
from offramp.train.epoch_accuracy import epoch_accuracies
from offramp.train.evaluated import EvaluatedNet
from offramp.train.graph_choice import GraphChoice
from offramp.train.interrupt import stopping_on_interrupt
from offramp.train.loaders import build_loaders
from offramp.train.log import Metrics
from offramp.train.loss_buffer import CHECK_EVERY, Record, check_weights
from offramp.train.moving_average import MovingAverage
from offramp.train.numerics import computing, layout
from offramp.train.recipe import Recipe
from offramp.train.reporter import Interrupted, Reporter
from offramp.train.state import (
    Position,
    change_of_device,
    collect_state,
    restore_state,
    settings,
    trained_on,
)
from offramp.train.static_step import Steps, captured_for_each_epoch, usable
from offramp.train.wrap import build_context


class Loop:
    """A training run and its current state.

    Args:
        fabric: from `offramp.train.device.make_fabric`.
        folder: the run's folder; it exists.
        net: the network, not yet on its device.
        method: how it trains.
        data: the splits; without `val` there is no best epoch.
    Raises:
        ValueError: if the method refuses these settings (see `refuse`), or the recipe does not fit the network.
    """

    def __init__(
        self,
        fabric: Any,
        folder: Path,
        recipe: Recipe,
        net: nn.Module,
        method: Method,
        data: DataSet,
        reporter: Reporter,
    ) -> None:
        self.fabric, self.folder, self.recipe, self.data, self.reporter = fabric, folder, recipe, data, reporter
        self.net = net.to(memory_format=layout(recipe.memory_format))  # type: ignore[call-overload]
        refuse(method, recipe, self.net, data)
        if recipe.precision == "bf16-dense":
            keep_float32(self.net)
        fast_gradients(self.net)
        self.method, self.spans = method, phases.spans(recipe, method)
        phase_list = [span.phase for span in self.spans]
        note = reporter.note if fabric.is_global_zero else lambda text: None
        static = usable(method, recipe, phase_list, fabric.device.type, note)
        held_out = self._held_out if "val" in data.splits else None
        self.context, self.trained = build_context(fabric, self.net, method, recipe, static, held_out)
        self.batches = build_loaders(fabric, recipe, data)
        self.inside = static and not recipe.mixup  # which draws on the host
        lasts = self.steps if captured_for_each_epoch(method) else 0
        self.graph_choice = GraphChoice(bool(recipe.graph), self._now, lasts, reporter.note)
        self.take_step = Steps(
            method,
            self.context,
            recipe.batch_size if static else None,
            recipe.accumulate,
            self._method_batch if self.inside else None,
            self.graph_choice,
        )
        self.average = MovingAverage(self.net, recipe.ema) if recipe.ema else None
        self.read = self.batches.train.raw if self.inside else self.batches.train.epoch
        for loader in (self.batches.train, self.batches.val):
            if loader and loader.note and fabric.is_global_zero:
                reporter.note(loader.note)
        self.evaluated = EvaluatedNet(fabric, self.net, self.context.net, self.average, self.batches.val)
        self.position = Position()
        self.trained_on: dict[str, str] = {}  # device and settings of the checkpoint that the run continues from
        self.record = Record(fabric, folder, reporter)
        self.stop = self.record.stop
        self.signals: list[int] = []

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.batches.train)

    @property
    def step_number(self) -> int:
        """Optimizer steps taken since the run began."""
        return self.position.epoch * self.steps + self.position.step

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or `patience` of them without a better one since the last phase began."""
        position, patience = self.position, self.recipe.patience
        since = position.epoch - max(position.best_epoch + 1, self.spans[-1].first)
        return position.epoch >= self.recipe.epochs or (patience > 0 and since >= patience)

    def run(self, resume: bool) -> Position:
        """Train to the end; if `resume`, from the newest valid checkpoint.

        Raises:
            Diverged: naming step and term, if a loss is not finite; the last good checkpoint stays.
            Interrupted: after Ctrl-C or a scheduler's signal, which is in `signals`; everything is saved.
        """
        offset = self._restore() if resume else 0
        if self.fabric.is_global_zero:
            events = self.folder / "events" if self.recipe.tensorboard else None
            self.record.metrics = Metrics(self.folder / "metrics.jsonl", offset, events, self.step_number)
            if self.trained_on.get("device", now := self.fabric.device.type) != now:
                self.record.metrics.write(change_of_device(self.trained_on, now, self.recipe, self.step_number))
        when = "after this step" if self.fabric.world_size == 1 else f"within {CHECK_EVERY} steps"
        try:
            computed = computing(self.recipe, self.fabric.device, training=True)
            with stopping_on_interrupt(self.stop, self.reporter.note, when) as self.signals, computed:
                self.reporter.start(self.recipe.epochs, self.steps, self.position.epoch, self.position.step)
                while not self.ended:
                    self._epoch()
        finally:
            if self.record.metrics:
                self.record.metrics.close()
        return self.position

    def _epoch(self) -> None:
        """The rest of the current epoch, its evaluation and its checkpoint."""
        self.graph_choice.interrupt()
        self.context.net.train()
        span = phases.span_at(self.spans, self.position.epoch)
        phases.start_epoch(self.net, self.context.objective, span.phase, self.trained)
        if self.average:
            phases.set_earlier_exit_use(self.average.module, span.phase)
        if (self.position.epoch, self.position.step) == (span.first, 0):
            self._begin(span)
        began = time.perf_counter()
        progress = phases.progress(span, self.position.epoch)
        for batch in self.read(self.position.epoch, self.position.step):
            self.step(batch, progress)
            if self.record.stopping or (self.stop.is_set() and self.fabric.world_size == 1):
                self.position.seconds += time.perf_counter() - began
                self._save()
                raise Interrupted
            if self._due() and self.position.step < self.steps:
                self.position.seconds += time.perf_counter() - began
                began = time.perf_counter()
                self._save()
        self._write_pending()
        self.position.seconds += time.perf_counter() - began
        self._finish_epoch()

    def _begin(self, span: phases.Span) -> None:
        """Start a phase: its own preparations; momentum and moving average start again."""
        if span.phase.begin:
            span.phase.begin(self.net)
        if self.recipe.compile:  # else graphs of earlier phases and runs count towards dynamo's limit of eight
            torch.compiler.reset()
        self.take_step.step = None  # a graph would go on with the momentum that is dropped here
        self.context.optimizer.state.clear()
        if self.average:
            self.average.restart()

    def _held_out(self) -> Batch:
        """The val batch of this step."""
        return self.batches.held_out.for_step(self.step_number)

    def _due(self) -> bool:
        return self.step_number % self.recipe.checkpoint_every == 0

    def step(self, batch: Batch, progress: float) -> None:
        """One optimizer step on a batch of `read`, recorded."""
        recipe, position = self.recipe, self.position
        span = phases.span_at(self.spans, position.epoch)
        lr = phases.rate(recipe, span, position.epoch, self.step_number, self.steps)
        optim.set_rate(self.context.optimizer, lr)
        batch = batch if self.inside else self._method_batch(batch)
        weight = self.batches.train.weight(position.step)
        whole = len(batch.ids) == recipe.batch_size // self.fabric.world_size
        how = nullcontext() if whole else uncompiled(recipe)
        with weighing(weight), over_all_processes(recipe.sync_batch_norm), how:
            terms = self.take_step(span.phase, batch, progress)
        if self.average:
            self.average.update(self.net)
        # Learned parts of a method.
        objective = self.context.objective
        logged = objective.logged_values() if isinstance(objective, LoggingObjective) else dict[str, Tensor]()
        self.record.add(position.epoch, self.step_number, lr, terms, logged)
        position.step += 1
        if self.record.full:
            self._write_pending(more=True)

    def _method_batch(self, batch: Batch) -> Batch:
        """A batch of `read` as the method gets it: augmented, with the labels to learn from."""
        recipe, position, classes = self.recipe, self.position, len(self.data.classes)
        batch = self.batches.train.to_inputs(batch) if self.inside else batch
        if recipe.label_smoothing:
            batch = soft_labels.smooth(batch, classes, recipe.label_smoothing)
        if recipe.mixup:
            key = (recipe.seed, position.epoch, position.step)
            batch = soft_labels.mixup(batch, classes, recipe.mixup, key, self.method.turns)
        return batch

    def _now(self) -> float:
        """Seconds, once the device has computed everything that it was given."""
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        return time.perf_counter()

    def _write_pending(self, *, more: bool = False) -> None:
        self.record.write_pending(self.position.epoch, self.position.step, more=more)

    def _finish_epoch(self) -> None:
        """Evaluate and record the epoch; keep its weights if they are the best or the last."""
        check_weights(self.net, self.step_number, self.folder)
        position = self.position
        epoch, means = position.epoch, {name: total / self.steps for name, total in self.record.sums.items()}
        with uncompiled(self.recipe):
            accuracy = self.evaluated.validate()
        position.epoch, position.step, self.record.sums = epoch + 1, 0, {}
        record = {
            "kind": "epoch",
            "epoch": epoch,
            "step": self.step_number,
            "train": means,
            "val_accuracy": accuracy,
            "seconds": position.seconds,
        }
        if self.batches.logged:
            with uncompiled(self.recipe):
                record["logged_only"] = epoch_accuracies(self.evaluated.module, self.batches.logged)
        if self.fabric.is_global_zero and self.record.metrics:
            self.record.metrics.write(record)
        score = self._score(accuracy)
        if accuracy and score > position.best:
            self.evaluated.save(self.folder / "best.safetensors", epoch + 1, accuracy, self.data)
            position.best, position.best_epoch = score, epoch
        if self.ended:
            self.evaluated.save(self.folder / "last.safetensors", epoch + 1, accuracy, self.data)
        if self._due() or self.ended:
            self._save()
        self.reporter.epoch_done(record)

    def _score(self, accuracy: list[float] | None) -> float:
        """What the best epoch is chosen by: the mean accuracy on val, -1 if there is none."""
        score = sum(accuracy) / len(accuracy) if accuracy else -1.0
        if self.recipe.patience and self.fabric.world_size > 1:  # their batch norms differ, and all must stop together
            score = self.fabric.broadcast(score)
        return score

    def _save(self) -> None:
        """Write a checkpoint of this state, after a check that losses and weights are finite."""
        self.graph_choice.interrupt()
        self._write_pending()
        check_weights(self.net, self.step_number, self.folder)
        state, weights = collect_state(self.context, self.average), sharding.whole(self.net.state_dict())
        metrics = self.record.metrics
        if not self.fabric.is_global_zero or metrics is None:
            return
        state |= {"position": vars(self.position).copy(), "sums": self.record.sums, "steps": self.steps}
        state["settings"] = settings(self.recipe)
        state["metrics_offset"] = metrics.flush()
        checkpoint.save(self.folder / "checkpoints", self.step_number, weights, state)

    def _restore(self) -> int:
        """Restore everything from the newest valid checkpoint; returns how much of the metrics to keep.

        Raises:
            ValueError: if there are checkpoints and none is valid, they are of another network, or a record is damaged.
        """
        newest = checkpoint.to_resume(self.folder / "checkpoints", self.reporter.note)
        if newest is None:
            return 0
        restore_state(newest, self.net, self.context, self.average, self.steps)
        self.trained_on = trained_on(newest)
        self.position = Position(**newest.state["position"])
        self.record.sums = dict(newest.state["sums"])
        size = int(newest.state["metrics_offset"])
        offset, warning = log.seen_by(self.folder / "metrics.jsonl", size, self.step_number, self.position.epoch)
        if warning:
            self.reporter.note(warning)
        return offset
