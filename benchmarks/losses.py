"""All pairwise KL divergences of ten exits, forward and backward: one table, 90 separate ones, and one cross-entropy.

    python benchmarks/losses.py [--json]

The three are measured in turn, round by round in one process, so that other work on the machine slows all of them;
medians are compared. The fastest rounds are shown too, because other work slows many small operations most. Targets:
the table (`kl_table`) is at least 20 times as fast as separate divergences, and takes at most 4 times as long as one
cross-entropy over the same logits (of all exits at once).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.losses.kl_table import kl_table
from offramp.measure.provenance import provenance

TEMPERATURE = 3.0
FASTER_THAN_SEPARATE, TIMES_CROSS_ENTROPY = 20.0, 4.0


def table(logits: Tensor, labels: Tensor) -> Tensor:
    return kl_table(logits, temperature=TEMPERATURE).sum()


def separate(logits: Tensor, labels: Tensor) -> Tensor:
    """One F.kl_div per ordered pair, including the softmaxes, as in published code."""
    total = logits.new_zeros(())
    exits = logits.unbind()
    for s, student in enumerate(exits):
        for t, teacher in enumerate(exits):
            if s != t:
                log_p = F.log_softmax(student / TEMPERATURE, -1)
                total = total + F.kl_div(log_p, F.softmax(teacher.detach() / TEMPERATURE, -1), reduction="batchmean")
    return total


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))


FORMS = {"table": table, "separate": separate, "cross_entropy": cross_entropy}


def timed(form: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> float:
    """Milliseconds of one forward and backward pass."""
    logits.grad = None
    wait = torch.cuda.synchronize if logits.is_cuda else (lambda: None)
    wait()
    start = time.perf_counter()
    form(logits, labels).backward()
    wait()
    return 1e3 * (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each form, round by round; the slow one is measured in every fifth round only."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(options.exits, options.batch, options.classes, generator=generator).to(options.device)
    labels = torch.randint(options.classes, (options.batch,), generator=generator).to(options.device)
    logits.requires_grad_()
    torch.testing.assert_close(table(logits, labels), separate(logits, labels), rtol=1e-3, atol=1e-4)
    taken: dict[str, list[float]] = {name: [] for name in FORMS}
    for round_ in range(options.rounds):
        for name, form in FORMS.items():
            if name != "separate" or round_ % 5 == 0:
                taken[name].append(timed(form, logits, labels))
    return taken


def report(options: argparse.Namespace, taken: dict[str, list[float]]) -> dict[str, Any]:
    """The results, with the conditions on which they depend."""
    ms = {name: statistics.median(times) for name, times in taken.items()}
    faster, times = ms["separate"] / ms["table"], ms["table"] / ms["cross_entropy"]
    return {
        "benchmark": "losses",
        **{key: getattr(options, key) for key in ("exits", "batch", "classes", "rounds", "device")},
        "ms": {name: round(value, 4) for name, value in ms.items()},
        "ms_fastest": {name: round(min(times), 4) for name, times in taken.items()},
        "faster_than_separate": round(faster, 2),
        "times_cross_entropy": round(times, 2),
        "target_met": faster >= FASTER_THAN_SEPARATE and times <= TIMES_CROSS_ENTROPY,
        **provenance(),
    }


def show(result: dict[str, Any]) -> None:
    """One table and the verdict."""
    hardware = result["hardware"]
    where = f"{hardware['threads']} threads, {hardware['gpu'] if result['device'] == 'cuda' else hardware['cpu']}"
    print("{exits} exits, batch {batch}, {classes} classes, ".format(**result) + where)
    print(f"{'forward and backward':34}{'median ms':>10}{'fastest ms':>12}{'x one cross-entropy':>21}")
    lines = {
        "kl_table (every pair)": "table",
        "separate F.kl_div of every pair": "separate",
        "one cross-entropy, all rows": "cross_entropy",
    }
    ms = result["ms"]
    for label, name in lines.items():
        ratio = ms[name] / ms["cross_entropy"]
        print(f"{label:34}{ms[name]:10.3f}{result['ms_fastest'][name]:12.3f}{ratio:21.2f}")
    faster, times = result["faster_than_separate"], result["times_cross_entropy"]
    print(f"kl_table is {faster} times faster than separate divergences (target {FASTER_THAN_SEPARATE:g})")
    print(f"and takes {times} times one cross-entropy (target at most {TIMES_CROSS_ENTROPY:g}):", end=" ")
    print("targets met" if result["target_met"] else "TARGETS MISSED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exits", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="write one JSON line instead of the table")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU and a torch built for it; there is none here")
    torch.set_num_threads(options.threads)
    result = report(options, measure(options))
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
