"""How PyTorch computes: threads and memory formats; on a GPU TF32, deterministic kernels, convolutions by measuring."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offramp.train.recipe import Recipe


def layout(memory_format: str) -> torch.memory_format:
    """PyTorch's memory format of a recipe's `memory_format`, of which `auto` is channels_last."""
    return torch.contiguous_format if memory_format == "contiguous" else torch.channels_last


@contextmanager
def cpu_threads(number: int | None) -> Iterator[int]:
    """Let PyTorch use this many CPU threads (None: as many as it does), and as many as before afterwards."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield number or before
    finally:
        if number is not None:
            torch.set_num_threads(before)


@contextmanager
def computing(recipe: Recipe, device: torch.device, *, training: bool = False) -> Iterator[None]:
    """A context with the settings of a run; those of the process are as before afterwards. Nothing changes on a CPU.

    - `precision=tf32` rounds the inputs of products in float32 to TF32; any other precision does not. `kl_table` never
      does.
    - In training, whose batches have one shape, cuDNN measures which convolutions are the fastest. In inference it
      must not: every batch size that early exit makes would be measured again.
    - `deterministic` takes kernels alone that give the same numbers in every run, and measures nothing. PyTorch looks
      once in a process, at its first product, whether cuBLAS may be deterministic: that is always allowed here.

    Args:
        device: the network's.
        training: for training, rather than inference.
    """
    if device.type != "cuda":
        yield
        return
    # Set by `allow_tf32`: PyTorch's newer names for it leave what its compiler and others read in contradiction.
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = products.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    before = *tf32, cudnn.benchmark, cudnn.deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        products.allow_tf32 = cudnn.allow_tf32 = recipe.precision == "tf32"
        cudnn.benchmark, cudnn.deterministic = training and not recipe.deterministic, recipe.deterministic
        if recipe.deterministic:
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
