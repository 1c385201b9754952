"""Compares the measurements of `benchmarks/serve.py` with the server's targets."""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import sqrt
from statistics import median, stdev
from typing import Any


def compare(results: Sequence[dict[str, Any]], costs: Mapping[str, Any]) -> dict[str, Any]:
    """One line of ratios of the highest rates, without those whose cases were not measured or never kept the bound.

    Ratios are taken load by load, and in `closed_loop` round by round. Each has its median over all starts of the
    servers, the standard error of the mean, and the median of every start.

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
        some = [each for each in loads if each["requests"] == name]
        divisors = {"speedup": 1.0, "speedup_share": promised}
        if name != "tensors":
            divisors["speedup_share_with_decoding"] = with_decoding
        kept = [each for each in some if each["highest_rate"] is not None]
        line[name] = _ratios(kept, "rates", divisors)
        line[name]["closed_loop"] = _ratios(some, "closed_loop_rates", divisors)
    overheads = [each for each in results if each["case"] == "overhead per request: plain"]
    line["overhead_ms"] = {each["requests"]: each["cpu_overhead_ms"] for each in overheads}
    line["overhead_without_decoding_ms"] = {
        each["requests"]: each["cpu_overhead_ms"] - each.get("decode_ms", 0.0) for each in overheads
    }
    memories = {each["case"].split()[-1]: each["mib"] for each in results if len(each.get("mib", ())) > 2}
    line["grown"] = {kind: mib[-1] / mib[1] for kind, mib in memories.items()}
    return line


def _ratios(loads: Sequence[dict[str, Any]], key: str, divisors: Mapping[str, float]) -> dict[str, Any]:
    """All ratios of these rates whose cases were measured; `divisors` are those of (a) to (c)."""
    rates: dict[str, dict[int, list[float]]] = {}
    for each in loads:
        rates.setdefault(each["case"], {})[each.get("start", 0)] = each[key]
    early, whole, plain = (next((rates[case] for case in rates if case.startswith(f"({x})")), {}) for x in "abc")
    ratios = {name: _ratio(early, plain, divisor) for name, divisor in divisors.items()}
    ratios["rebatched_vs_whole"] = _ratio(early, whole)
    others = [_ratio(plain, rates[case]) for case in rates if case.startswith("(d)")]
    ratios["plain_vs_others"] = min((each for each in others if each), key=lambda each: each["median"], default=None)
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def _ratio(
    one: Mapping[int, Sequence[float]], other: Mapping[int, Sequence[float]], divisor: float = 1.0
) -> dict[str, Any] | None:
    """Ratios of the rates of two servers (by start of the servers), over `divisor`; None without a common start."""
    starts = [
        [first / second / divisor for first, second in zip(one[start], other[start], strict=True)]
        for start in one
        if start in other
    ]
    ratios = list(chain(*starts))
    if not ratios:
        return None
    error = stdev(ratios) / sqrt(len(ratios)) if len(ratios) > 1 else None
    return {"median": median(ratios), "standard_error": error, "by_start": [median(each) for each in starts]}
