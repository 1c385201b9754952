"""Compares the measurements of `benchmarks/serve.py` with the server's targets."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import median, stdev
from typing import Any


def compare(results: Sequence[dict[str, Any]], costs: Mapping[str, Any]) -> dict[str, Any]:
    """One line of ratios of the highest rates, without those whose cases were not measured.

    Of several starts of the servers, rates are medians. `closed_loop` are the same ratios of rates in a closed loop:
    medians over all rounds, with the standard error of their mean.

    Targets: `speedup_share` at least 0.9, `rebatched_vs_whole` and `plain_vs_others` at least 1, `overhead_ms` at most
    0.3, `grown` (memory at the end relative to that after the first kind of requests) about 1.

    Args:
        results: the lines of all cases.
        costs: of the network, as of `serve_networks.write`. `promised_speedup` is that of the segments;
            `promised_with_decoding` that of requests with image files, which both networks decode.
    """
    promised, decode = costs["promised_speedup"], costs["decode_ms"]
    with_decoding = (costs["plain_ms"] + decode) / (costs["plain_ms"] / promised + decode)
    line: dict[str, Any] = {
        "case": "targets",
        "promised_speedup": promised,
        "promised_with_decoding": with_decoding,
        "decode_ms": decode,
    }
    loads = [each for each in results if "highest_rate" in each]
    for name in dict.fromkeys(each["requests"] for each in loads):
        rate = _medians([each for each in loads if each["requests"] == name])
        early, whole, plain = (next((rate[case] for case in rate if case.startswith(f"({x})")), None) for x in "abc")
        others = [value for case, value in rate.items() if case.startswith("(d)") and value]
        ratios = {
            "speedup": _ratio(early, plain),
            "speedup_share": _ratio(early, plain and promised * plain),
            "speedup_share_with_decoding": _ratio(
                early, None if name == "tensors" else plain and with_decoding * plain
            ),
            "rebatched_vs_whole": _ratio(early, whole),
            "plain_vs_others": _ratio(plain, max(others, default=None)),
        }
        line[name] = {name: value for name, value in ratios.items() if value is not None}
    loops = [each for each in results if "closed_loop_rates" in each]
    for name in dict.fromkeys(each["requests"] for each in loops):
        starts = [each["closed_loop_rates"] for each in loops if each["requests"] == name]
        line.setdefault(name, {})["closed_loop"] = _closed_loop(starts, promised)
    overheads = [each for each in results if each["case"] == "overhead per request: plain"]
    line["overhead_ms"] = {each["requests"]: each["cpu_overhead_ms"] for each in overheads}
    line["overhead_without_decoding_ms"] = {
        each["requests"]: each["cpu_overhead_ms"] - each.get("decode_ms", 0.0) for each in overheads
    }
    memories = {each["case"].split()[-1]: each["mib"] for each in results if len(each.get("mib", ())) > 2}
    line["grown"] = {kind: mib[-1] / mib[1] for kind, mib in memories.items()}
    return line


def _medians(loads: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The highest rate of every server, by case; those for which the bound held at no rate are left out."""
    by_case: dict[str, list[float]] = {each["case"]: [] for each in loads}
    for each in loads:
        if each["highest_rate"] is not None:
            by_case[each["case"]].append(each["highest_rate"])
    return {case: median(rates) for case, rates in by_case.items() if rates}


def _closed_loop(starts: Sequence[Mapping[str, Sequence[float]]], promised: float) -> dict[str, list[float]]:
    """Ratios of rates (the median over all rounds, the standard error of the mean), by name.

    Args:
        starts: the rates of every round by server, of each start of the servers.
    """
    pairs = {
        "speedup": ("rebatched", "plain", 1.0),
        "speedup_share": ("rebatched", "plain", promised),
        "rebatched_vs_whole": ("rebatched", "whole", 1.0),
    }
    line = {}
    for name, (one, other, divisor) in pairs.items():
        both = [(rates[one], rates[other]) for rates in starts if one in rates and other in rates]
        ratios = [first / second / divisor for pair in both for first, second in zip(*pair, strict=True)]
        if ratios:
            line[name] = [median(ratios), stdev(ratios) / sqrt(len(ratios))]
    return line


def _ratio(one: float | None, other: float | bool | None) -> float | None:
    return one / other if one and other else None
