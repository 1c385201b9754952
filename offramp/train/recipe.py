"""How a run trains: epochs, optimizer, schedule, precision; the part of the configuration that the loop reads."""

import math
from dataclasses import dataclass
from typing import Literal

from offramp.argument_types import check_fields
from offramp.lookup import ParameterError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about training that is not the network, the method or the data.

    The defaults are the recipe of MUSE, MSD, EED and BEED on CIFAR (methods of the papers: SGD, momentum 0.9, learning
    rate 0.1 cut to a tenth at 37.5 %, 65 % and 90 % of the run, weight decay 5e-4, batch 128, 200 epochs).

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples per optimizer step, summed over all devices.
        accumulate: Number of passes through the network for one optimizer step, each on a part of the batch, to use
            less memory; batch norms use the statistics of each part.
        optimizer: The optimizer.
        lr: Peak learning rate.
        lr_backbone: Peak learning rate of the backbone (stages and final exit); default: `lr`.
        tune: Which parts are trained. `all`: as the method specifies; `exits`: the backbone is frozen; `mixed`: the
            backbone with its final exit alone for half of the epochs, then as the method specifies.
        momentum: Momentum of SGD.
        nesterov: Use Nesterov momentum.
        weight_decay: Weight decay of all parameters.
        schedule: Learning rate schedule. `step`: multiplied by gamma at the milestones; `cosine`: annealed to zero;
            `onecycle`: rises to its peak, then annealed; `constant`: unchanged.
        milestones: Fractions of the run, comma-separated, after which the `step` schedule reduces the rate.
        gamma: Factor of the rate at each milestone.
        warmup: Fraction of the run during which the rate rises linearly from zero (with onecycle: to its peak).
        label_smoothing: Share of the label's probability that is spread evenly over all classes.
        mixup: Alpha of mixup's Beta distribution; 0 disables mixup.
        ema: Decay per step of a moving average of the weights, evaluated and saved in place of the weights; 0 disables
            it.
        clip: Maximum norm of the gradient; 0 disables clipping.
        precision: `auto`: bf16 if the processor supports it natively, else 32; on a CPU, longer runs use the fastest of
            32, bf16 and, with depthwise convolutions, bf16-dense (bf16, but these convolutions in float32), measured in
            a few steps. On GPUs also tf32 (float32 with inputs of products rounded to TF32) and 16 (float16 with loss
            scaling, for GPUs without bf16).
        memory_format: Memory format of images and maps. `auto`: channels_last, or, in longer runs on a CPU and with
            precision=auto, the faster one in the same measurement. Weights that FSDP divides are contiguous.
        threads: CPU threads of training; default: as many as PyTorch uses, or, in longer runs on a CPU and with
            precision=auto, half of them, a quarter and so on, if that is faster in the same measurement.
        compile: Compile the network and the losses with torch.compile, for whole batches of training.
        graph: On a GPU, run each step as one CUDA graph. Default: used if it is faster, as measured in the first
            steps of the run. Steps that cannot be captured run as usual, and a note says why.
        balanced: Draw every class equally often: an epoch keeps its length; images of small classes are repeated, and
            large classes contribute a part of their images.
        patience: Stop if the mean accuracy of the exits on val has not increased for this many epochs; 0: never. The
            run keeps the weights of the last and of the best epoch.
        device: Device to train on; `auto` is a GPU if there is one.
        devices: Number of processes, one per device.
        strategy: How several processes divide the work. `ddp`: each has the whole network and a part of the batch;
            `fsdp`: weights, gradients and optimizer state are sharded over the processes (FSDP2).
        sync_batch_norm: With several processes, batch norms use statistics of the whole batch, as one process does;
            otherwise each process uses those of its part.
        deterministic: On a GPU, use only deterministic kernels; slower. Without it, a resumed run on a GPU may give
            other results than an uninterrupted one; on a CPU the results are always identical.
        seed: Seed of initial weights, sample order and augmentation.
        checkpoint_every: Steps between checkpoints; one more is written at the end, and on Ctrl-C.
        tensorboard: Also write TensorBoard events (needs the extra `tensorboard`).
        log_accuracy: Also record the accuracy of every exit and of the ensemble after each epoch on these splits:
            train, val, test, comma-separated; only logged, never used to select anything.
    Raises:
        ParameterError: naming the parameter, if a value is invalid.
    """

    epochs: int = 200
    batch_size: int = 128
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    lr_backbone: float | None = None
    tune: Literal["all", "exits", "mixed"] = "all"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["step", "cosine", "onecycle", "constant"] = "step"
    milestones: tuple[float, ...] = (0.375, 0.65, 0.9)
    gamma: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    clip: float = 0.0
    precision: Literal["auto", "32", "tf32", "bf16", "bf16-dense", "16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    threads: int | None = None
    compile: bool = False
    graph: bool | None = None
    balanced: bool = False
    patience: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    sync_batch_norm: bool = False
    deterministic: bool = False
    seed: int = 0
    checkpoint_every: int = 500
    tensorboard: bool = False
    log_accuracy: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("epochs", "batch_size", "accumulate", "devices", "checkpoint_every"):
            self._refuse(name, getattr(self, name) < 1, "be at least 1")
        for name in ("lr", "gamma"):
            self._refuse(name, not 0 < getattr(self, name) < math.inf, "be positive and finite")
        for name in ("momentum", "warmup", "label_smoothing", "ema"):
            self._refuse(name, not 0 <= getattr(self, name) < 1, "be in [0, 1)")
        for name in ("weight_decay", "mixup", "clip", "patience", "seed"):
            self._refuse(name, not 0 <= getattr(self, name) < math.inf, "not be negative, and finite")
        self._refuse("threads", self.threads is not None and self.threads < 1, "be at least 1")
        self._refuse("seed", self.seed >= 2**63, "be below 2^63")
        wrong = any(not 0 < share < 1 for share in self.milestones) or list(self.milestones) != sorted(self.milestones)
        self._refuse("milestones", wrong, "be rising fractions of the run between 0 and 1")
        for split in self.log_accuracy:
            self._refuse("log_accuracy", split not in ("train", "val", "test"), "name train, val or test")
        self._check_pairs()

    def _refuse(self, name: str, wrong: bool, rule: str) -> None:
        if wrong:
            raise ParameterError(f"{name} must {rule}, got {getattr(self, name)}", name)

    def _check_pairs(self) -> None:
        if self.lr_backbone is not None and not 0 < self.lr_backbone < math.inf:
            raise ParameterError(
                f"lr_backbone must be positive, got {self.lr_backbone}; tune=exits leaves the backbone as it is",
                "lr_backbone",
                "tune",
            )
        if self.nesterov and not self.momentum:
            raise ParameterError("nesterov needs momentum above 0", "nesterov", "momentum")
        if self.sync_batch_norm and self.compile:
            raise ParameterError(
                "sync_batch_norm and compile cannot be combined: leave one out", "sync_batch_norm", "compile"
            )
        if self.batch_size % self.devices:
            raise ParameterError(
                f"batch_size={self.batch_size} does not divide evenly over devices={self.devices}",
                "batch_size",
                "devices",
            )
        if self.batch_size % (self.devices * self.accumulate):
            raise ParameterError(
                f"batch_size={self.batch_size} on devices={self.devices} does not divide evenly into "
                f"accumulate={self.accumulate} parts each",
                "batch_size",
                "devices",
                "accumulate",
            )
