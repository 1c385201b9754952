"""The targets of the benchmarks on GPUs, each beside what was measured, so that nothing is computed by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from offramp.runs.backends import GRAPHS, PROVIDERS
from offramp.runs.never_slower import SLACK

MINUTES, AIM, VS_PLAIN, VS_BARE = 8.0, 5.5, 6.0, 0.95
"""Of 200 epochs: minutes at most, and aimed at; least images/s divided by those of a plain loop, of a bare step."""
OF_PREDICTED = 0.95
"""Least measured speed-up of early exit divided by the predicted one."""


def target(name: str, value: Any, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
    """One entry: what it is, the value measured (None: not measured), its limit, and whether it is reached."""
    known = isinstance(value, int | float)
    limit = {"at_least": at_least} if at_most is None else {"at_most": at_most}
    reached = (value <= at_most if at_most is not None else value >= at_least) if known else None
    return {"name": name, "value": value if known else None, **limit, "reached": reached}


def training(minutes: Any, vs_plain: Any, vs_bare: Any, estimated: str = "") -> list[dict[str, Any]]:
    """Those of `gpu_cifar.py`; both ratios are of images/s of steps that are captured, without torch.compile."""
    epochs = f"minutes of 200 epochs{estimated}, start included"
    return [
        target(epochs, minutes, at_most=MINUTES),
        target(f"{epochs} (aim)", minutes, at_most=AIM),
        target("captured training step / plain PyTorch loop", vs_plain, at_least=VS_PLAIN),
        target("captured training step / bare captured step of the network", vs_bare, at_least=VS_BARE),
    ]


def early_exit(inference: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of inference, each at the worst of the batch sizes."""
    never_slower = inference.get("never_slower")
    ratios = never_slower["of_plain_ms"].values() if isinstance(never_slower, dict) else ()
    least: dict[str, float] = {}
    for each in inference.values():
        for record in each.get("batches", ()) if isinstance(each, dict) else ():
            for runtime, report in record["runtimes"].items():
                least[runtime] = min(report["of_predicted"], least.get(runtime, float("inf")))
    name = "early exit / plain network, time, where exits may be disabled"
    return [
        target(name, max(ratios, default=None), at_most=SLACK),
        *(
            target(f"measured / predicted speed-up, {runtime}", least.get(runtime), at_least=OF_PREDICTED)
            for runtime in ("torch", "torch-bf16", *GRAPHS, *PROVIDERS)
        ),
    ]


def all_targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of everything that `gpu_all.py` measures, from its results so far."""
    ratios, failed = result.get("steps", {}).get("ratios", {}), result.get("tests", {}).get("failed")
    minutes = result.get("cifar", {}).get("200_epochs_estimated_minutes")
    apart = result.get("resume", {}).get("largest_difference")
    return [
        target("tests marked gpu that failed", None if failed is None else len(failed), at_most=0),
        *training(minutes, ratios.get("graph / plain"), ratios.get("graph / bare graph"), ", estimated from three"),
        *early_exit(result.get("inference", {})),
        target("largest difference of weights after an interruption", apart, at_most=0),
    ]


def lines(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """The list as text, one line each."""
    texts = []
    for each in targets:
        value = "not measured" if each["value"] is None else f"{each['value']:.3f}"
        limit = f"at most {each['at_most']:g}" if "at_most" in each else f"at least {each['at_least']:g}"
        verdict = {None: "", True: ": reached", False: ": MISSED"}[each["reached"]]
        texts.append(f"{each['name']}: {value} (target: {limit}){verdict}")
    return texts
