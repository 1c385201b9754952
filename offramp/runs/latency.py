"""Milliseconds of a run's segments, measured on this machine in the runtime that will be deployed."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from offramp.bundle.gpu_sessions import PROVIDERS
from offramp.progress import Progress, no_progress
from offramp.runs.backends import FOREIGN, GRAPHS, require
from offramp.runs.run import LoadedRun

if TYPE_CHECKING:
    from offramp.early_exit.exit_scores import Rule
    from offramp.early_exit.policy import ExitPolicy
    from offramp.measure.cost import Pieces


def timed(
    loaded: LoadedRun, batch_size: int, rule: "Rule", runtime: str | None, progress: Progress = no_progress
) -> tuple[Callable[[Sequence[bool]], list[float]], dict[str, Any]]:
    """Milliseconds per image of the segments of any choice of exits; and where they were measured, as plain values.

    Args:
        runtime: one of `offramp.runs.backends.RUNTIMES`; torch in the run's own precision by default.
        progress: called while models are exported for a foreign runtime.
    Returns:
        A function of E flags, the final one true, to one number per enabled exit; and what the policy records.
    Raises:
        ValueError: if a foreign runtime cannot run the network, or a runtime of GPUs is to run on the CPU.
        ImportError: if the runtime is not installed, with the command that installs it.
    """
    import torch

    from offramp.measure.cost import as_run
    from offramp.train.device import device_of

    require(runtime, loaded.config.device)
    if runtime in FOREIGN:
        device = "cuda" if runtime in PROVIDERS else "cpu"
        choose = _foreign(loaded, batch_size, _all(loaded, rule), runtime, progress)
    elif runtime in GRAPHS:
        device, choose = "cuda", graphed(loaded, batch_size, rule, runtime)
    else:
        runtime, device = runtime or _own(loaded), device_of(loaded.config.device)
        pieces = timed_pieces(loaded, batch_size, rule, runtime)

        def choose(enabled: Sequence[bool]) -> list[float]:
            return as_run(pieces, enabled)

    threads = torch.get_num_threads()
    return choose, {"batch_size": batch_size, "runtime": runtime, "device": device, "threads": threads}


def graphed(loaded: LoadedRun, batch_size: int, rule: "Rule", runtime: str) -> Callable[[Sequence[bool]], list[float]]:
    """As `timed`, of segments that are CUDA graphs with the policy inside, on the run's device."""
    import torch

    from offramp.measure.graph_latency import graph_ms
    from offramp.measure.latency import spans_as_run
    from offramp.runs.backends import in_precision, inference
    from offramp.train.device import device_of

    device, half = torch.device(device_of(loaded.config.device)), "bf16" in runtime
    inputs = torch.randn(batch_size, *loaded.about["shape"], device=device).to(memory_format=torch.channels_last)
    with inference(device, half):
        ms = graph_ms(in_precision(loaded.inference_net, device, half), inputs, _all(loaded, rule))
    return lambda enabled: spans_as_run(ms, enabled)


def timed_pieces(loaded: LoadedRun, batch_size: int, rule: "Rule", runtime: str | None = None) -> "Pieces":
    """Milliseconds per image of every stage and branch in PyTorch, on the run's device.

    Args:
        runtime: torch (float32) or torch-bf16, as `bench` measures them; by default, that of the run's precision.
    """
    import torch

    from offramp.measure.latency import piece_ms
    from offramp.runs.backends import in_precision, inference
    from offramp.train.device import device_of

    device = torch.device(device_of(loaded.config.device))
    inputs = torch.randn(batch_size, *loaded.about["shape"], device=device).to(memory_format=torch.channels_last)
    half = (runtime or _own(loaded)) == "torch-bf16"
    net = in_precision(loaded.inference_net, device, half)
    with inference(device, half):
        return piece_ms(net, inputs, _all(loaded, rule))


def _own(loaded: LoadedRun) -> str:
    """The runtime that computes in the run's own precision."""
    from offramp.train.device import device_of, precision_of

    config = loaded.config
    return "torch-bf16" if precision_of(config.precision, device_of(config.device)).startswith("bf16") else "torch"


def _all(loaded: LoadedRun, rule: "Rule") -> "ExitPolicy":
    """A policy of this rule with all exits on."""
    from offramp.early_exit.exit_scores import policy_of

    return policy_of(rule, (True,) * loaded.net.exits)


def _foreign(
    loaded: LoadedRun, batch_size: int, policy: "ExitPolicy", runtime: str, progress: Progress
) -> Callable[[Sequence[bool]], list[float]]:
    import torch

    from offramp.bundle.latency import segment_ms
    from offramp.measure.latency import spans_as_run

    shape, threads = tuple(loaded.about["shape"]), torch.get_num_threads()
    with progress("exporting", loaded.net.exits) as advance:
        ms = segment_ms(loaded.inference_net, shape, batch_size, policy, runtime, threads=threads, advance=advance)
    return lambda enabled: spans_as_run(ms, enabled)
