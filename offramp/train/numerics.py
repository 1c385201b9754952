"""How PyTorch computes on a GPU: TF32, deterministic kernels, and the choice of convolutions by measuring."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offramp.train.recipe import Recipe


@contextmanager
def computing(recipe: Recipe, device: torch.device, *, training: bool = False) -> Iterator[None]:
    """A context with the settings of a run; those of the process are as before afterwards. Nothing changes on a CPU.

    - `precision=tf32` rounds the inputs of products in float32 to TF32; any other precision does not. `kl_table` never
      does.
    - In training, whose batches have one shape, cuDNN measures which convolutions are the fastest. In inference it
      must not: every batch size that early exit makes would be measured anew.
    - `deterministic` takes kernels alone that give the same numbers in every run, and measures nothing.

    Args:
        device: the network's.
        training: for training, rather than inference.
    """
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    cudnn = torch.backends.cudnn
    before = products.fp32_precision, convolutions.fp32_precision, cudnn.benchmark, cudnn.deterministic
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        products.fp32_precision = convolutions.fp32_precision = "tf32" if recipe.precision == "tf32" else "ieee"
        cudnn.benchmark, cudnn.deterministic = training and not recipe.deterministic, recipe.deterministic
        if recipe.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        products.fp32_precision, convolutions.fp32_precision, cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
