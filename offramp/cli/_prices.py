"""Milliseconds of every stage and branch of a run, measured here and now, in the runtime that is to answer."""

from typing import TYPE_CHECKING, Any

from offramp.runs import LoadedRun

if TYPE_CHECKING:
    from offramp.adapt.judge import Rule
    from offramp.measure.cost import Pieces


def timed_pieces(
    loaded: LoadedRun, batch_size: int, rule: "Rule", runtime: str | None = None, show: bool = False
) -> tuple["Pieces", dict[str, Any]]:
    """Milliseconds per image of every stage and branch; and where they were measured, as plain values.

    Args:
        runtime: torch, torch-bf16, onnx or openvino; the run's own precision in torch by default.
        show: a progress bar while a foreign runtime's models are made.
    """
    import torch

    from offramp.adapt.judge import policy_of
    from offramp.train.device import device_of, precision_of

    recipe = loaded.config.recipe
    policy = policy_of(rule, (True,) * loaded.net.exits)
    device = "cpu" if runtime in ("onnx", "openvino") else device_of(recipe.device)
    precision = {None: precision_of(recipe.precision, device), "torch-bf16": "bf16"}.get(runtime, "32")
    about = {
        "batch_size": batch_size,
        "runtime": runtime or "torch",
        "precision": precision,
        "device": device,
        "threads": torch.get_num_threads(),
    }
    if runtime in ("onnx", "openvino"):
        return _foreign(loaded, batch_size, policy, runtime, show), about
    return _in_torch(loaded, batch_size, policy, runtime, device), about


def _in_torch(loaded: LoadedRun, batch_size: int, policy: Any, runtime: str | None, device: str) -> "Pieces":
    """In PyTorch: as the run evaluates, or as `bench` measures the runtime of this name."""
    import torch

    from offramp.cli._sides import in_precision, inference
    from offramp.measure.latency import piece_ms
    from offramp.train.device import keep_freed_memory, make_fabric

    inputs = torch.randn(batch_size, *loaded.about["shape"], device=device).to(memory_format=torch.channels_last)
    if runtime is None:
        fabric = make_fabric(loaded.config.recipe)
        net = loaded.net.to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode(), fabric.autocast():
            return piece_ms(net.eval(), inputs, policy)
    if device == "cpu":
        keep_freed_memory()
    half = runtime == "torch-bf16"
    net = in_precision(loaded.net, torch.device(device), half)
    with inference(torch.device(device), half):
        return piece_ms(net, inputs, policy)


def _foreign(loaded: LoadedRun, batch_size: int, policy: Any, runtime: str, show: bool) -> "Pieces":
    import torch

    from offramp.bundle.latency import piece_ms
    from offramp.cli._show import working

    shape = tuple(loaded.about["shape"])
    with working("exporting", loaded.net.exits, show) as advance:
        return piece_ms(
            loaded.net, shape, batch_size, policy, runtime, threads=torch.get_num_threads(), advance=advance
        )
