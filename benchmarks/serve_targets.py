"""Compares the measurements of `benchmarks/serve.py` with the server's targets."""

from collections.abc import Sequence
from typing import Any


def compare(results: Sequence[dict[str, Any]], promised: float) -> dict[str, Any]:
    """One line of ratios of the highest rates, without those whose cases were not measured.

    Targets: `speedup_share` at least 0.9, `rebatched_vs_whole` and `plain_vs_others` at least 1, `overhead_ms` at most
    0.3, `grown_mib` flat.
    """
    line: dict[str, Any] = {"case": "targets", "promised_speedup": promised}
    for images in sorted({each["images"] for each in results if "highest_rate" in each}):
        rate = {each["case"]: each["highest_rate"] for each in results if each.get("images") == images}
        early, whole, plain = (next((rate[case] for case in rate if case.startswith(f"({x})")), None) for x in "abc")
        others = [value for case, value in rate.items() if case.startswith("(d)") and value]
        ratios = {
            "speedup": _ratio(early, plain),
            "speedup_share": _ratio(early, plain and promised * plain),
            "rebatched_vs_whole": _ratio(early, whole),
            "plain_vs_others": _ratio(plain, max(others, default=None)),
        }
        line[f"images_{images}"] = {name: value for name, value in ratios.items() if value is not None}
    overheads = [each for each in results if each["case"] == "overhead per request: plain"]
    line["overhead_ms"] = {each["requests"]: each["cpu_overhead_ms"] for each in overheads}
    memories = [each for each in results if "after_mib" in each]
    line["grown_mib"] = {each["case"].split()[-1]: each["after_mib"] - each["before_mib"] for each in memories}
    return line


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None
