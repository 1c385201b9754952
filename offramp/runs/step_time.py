"""Seconds of a training step, measured on random images."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offramp.config import ResolvedConfig, build_method, build_net


def step_times(
    config: ResolvedConfig, shape: tuple[int, int, int], classes: int, *, batch: int, steps: int, at_least: float = 0.0
) -> list[float]:
    """Seconds of optimizer steps, after one that warms up, on the device that would train.

    Args:
        shape: (channels, height, width) of the images.
        batch: images of a step.
        steps: how many are measured at least.
        at_least: seconds to measure at least.
    """
    import torch

    from offramp.train.numerics import layout
    from offramp.train.step_trainer import StepTrainer

    method = build_method(config)
    net: Any = build_net(config, method, classes=classes, shape=shape)
    memory = layout(config.memory_format)
    net = net.to(device=config.device, memory_format=memory)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *shape, generator=draw).to(device=config.device, memory_format=memory)
    labels = torch.randint(classes, (batch,), generator=draw).to(config.device)

    def autocast() -> Any:
        return torch.autocast(config.device, torch.bfloat16, enabled=config.precision.startswith("bf16"))

    trainer = StepTrainer(
        method,
        net,
        torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9),
        input_shape=shape,
        epochs=max(2, len(method.phases)),
        held_out=[(images, labels)],
        autocast=autocast,
    )
    trainer.start_epoch(0)
    times: list[float] = []
    while len(times) <= steps or sum(times[1:]) < at_least:
        start = time.perf_counter()
        trainer.step(images, labels)
        if config.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[1:]


def main(words: Sequence[str]) -> None:
    """Print the times of a run's steps and the memory that they took, as JSON; what `offramp.runs.packing` starts.

    Args:
        words: file with the run's configuration, side lengths of its images joined by x, number of classes.
    """
    import torch

    from offramp.config import read_yaml, resolve, unflat
    from offramp.measure.memory import peak_mib

    config = resolve(unflat(read_yaml(Path(words[0])), words[0]))
    channels, height, width = map(int, words[1].split("x"))
    times = step_times(config, (channels, height, width), int(words[2]), batch=config.batch_size, steps=3, at_least=0.5)
    gpu = torch.cuda.max_memory_reserved() / 2**20 if config.device == "cuda" else 0.0
    free = torch.cuda.mem_get_info()[1] / 2**20 if config.device == "cuda" else 0.0
    print(json.dumps({"seconds": times, "mib": peak_mib(), "gpu_mib": gpu, "gpu_total_mib": free}))
