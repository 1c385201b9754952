"""A benchmark as text: one table per batch size, then what early exit saves."""

from typing import TYPE_CHECKING, Any

from offramp.measure.text_table import prose, text_table
from offramp.runs.never_slower import SLACK

if TYPE_CHECKING:
    from offramp.runs.bench import Benchmark

RATIO, OFF, MS = 0.95, 1.02, 5.0
"""Targets: measured / predicted speed-up; time with all exits disabled / plain, if plain takes MS ms or more."""
NAMES = {"plain": "plain", "all": "all exits", "adaptive": "early exit", "off": "exits off"}


def bench_text(result: "Benchmark") -> str:
    """Everything that was measured, and the targets."""
    images = result.images
    lines = [f"{result.target}: {images['count']:,} images of {images['from']}, in random order"]
    devices = {name: report["device"] for name, report in result.batches[0]["runtimes"].items()}
    for device in dict.fromkeys(devices.values()):
        lines.append(f"on {device}: {', '.join(name for name, place in devices.items() if place == device)}")
    lines += [f"left out: {name} ({reason})" for name, reason in result.left_out.items()]
    lines.append(f"baseline {result.baseline['source']}" if result.baseline else "plain = final exit of this network")
    targets = (
        f"ratio: speed-up / predicted speed-up; target: at least {RATIO:g}\n"
        f"exits off: time with all exits off / plain; target: at most {OFF:g} (from {MS:g} ms on)"
    )
    if result.baseline:
        targets += "\nbaseline: speed-up over the baseline"
    tables = [_times(each) for each in result.batches]
    return "\n\n".join(["\n".join(lines), *tables, f"{_savings(result)}\n{targets}", *_slower(result)])


def _times(record: dict[str, Any]) -> str:
    """One batch size: percentiles and throughput of every runtime and way."""
    rows = []
    for runtime, report in record["runtimes"].items():
        for way, name in {**NAMES, **{rival: rival for rival in report["rivals"]}}.items():
            times = report[way] if way in NAMES else report["rivals"][way]
            relative = times["images_per_second"] / report["plain"]["images_per_second"]
            numbers = [_ms(times[key]) for key in ("p50", "p95", "p99")]
            first = runtime if way == "plain" else ""
            rows.append([f"{first:12}{name}", *numbers, f"{times['images_per_second']:,.1f}", f"{relative:.2f}x"])
    head = ["", "p50 ms", "p95 ms", "p99 ms", "images/s", "of plain"]
    return text_table(f"batch {record['batch']}, {record['rounds']} rounds", head, rows) + _copies(record)


def _copies(record: dict[str, Any]) -> str:
    """What it costs to bring a batch to a GPU, if there is one."""
    on_gpu = {name: report for name, report in record["runtimes"].items() if report["device"] == "cuda"}
    if not on_gpu:
        return ""
    copies = ", ".join(f"{name} {report['inputs_ms']:.3f} ms" for name, report in on_gpu.items())
    return f"\ncopying and normalising a batch, not in these times: {copies}"


def _savings(result: "Benchmark") -> str:
    rows = []
    for record in result.batches:
        for runtime, report in record["runtimes"].items():
            numbers = [f"{report[key]:.2f}" for key in ("speedup", "predicted", "of_predicted", "off_of_plain")]
            numbers += [f"{faster:.2f}" for faster in report["rival_speedup"].values()]
            shares = " ".join(f"{100 * share:.0f}" for share in report["shares"])
            rows.append([f"{record['batch']:<7}{runtime}", *numbers, shares])
    over = ["baseline"] if result.baseline else []
    head = ["batch  runtime", "speed-up", "predicted", "ratio", "exits off", *over, "exits here %"]
    return text_table("early exit compared with the plain network", head, rows)


def _slower(result: "Benchmark") -> list[str]:
    """Where early exit takes longer than the plain network, and what to do; nothing if it does nowhere."""
    sizes: dict[str, list[str]] = {}
    for record in result.batches:
        for runtime, report in record["runtimes"].items():
            if report["speedup"] * SLACK < 1:
                sizes.setdefault(runtime, []).append(str(record["batch"]))
    return [
        prose(
            f"{runtime}: early exit is more than {100 * (SLACK - 1):.0f} % slower than the plain network at batch "
            f"{', '.join(slow)}; calibrate the run with --runtime {runtime} --never-slower-at {','.join(slow)}, which "
            "disables exits"
        )
        for runtime, slow in sizes.items()
    ]


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
