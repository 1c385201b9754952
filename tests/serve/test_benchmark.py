"""benchmarks/serve.py on a tiny network for a few seconds: every case has its line; what it measures is no matter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "cases", ["rebatched,whole,plain,overhead", pytest.param("litserve,ray,hop", id="other servers")]
)
def test_every_case_has_its_lines(
    cases: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("litserve", "ray.serve") if "ray" in cases else ():
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(BENCHMARKS)
    import serve

    out = tmp_path / "serve.jsonl"
    words = ["--network", "tiny", "--width", "8", "--probes", "2", "--rounds", "1", "--minutes", "0.2"]
    words += ["--bound-ms", "10000"]  # kept by all servers, however slow the machine
    starts = 2 if "whole" in cases else 1
    words += ["--starts", str(starts)]
    serve.main([*words, "--cases", cases, "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert capsys.readouterr().out.splitlines() == out.read_text().splitlines()
    loads = [line for line in lines if "highest_rate" in line]
    assert {(line["requests"], line["images"]) for line in loads} >= {("bodies-1", 1), ("bodies-4", 4)}
    assert all(line["at_half"]["answered"] for line in loads)
    kinds = set(cases.split(",")) & set(serve.CASES)
    assert len(loads) == starts * (2 * len(kinds) + len(kinds & set(serve.OWN)))
    assert all(line["about"]["versions"] and line["about"]["cores"] for line in lines)
    if "overhead" in cases:
        overhead = [line for line in lines if line["case"].startswith("overhead")]
        assert [line["requests"] for line in overhead] == ["tensors", "bodies-1"] * 2
        targets = lines[-1]
        ratios = {"speedup", "speedup_share", "rebatched_vs_whole"}
        assert set(targets["tensors"]) == {*ratios, "closed_loop"}
        assert set(targets["bodies-1"]) == {*ratios, "speedup_share_with_decoding", "closed_loop"}
        assert set(targets["tensors"]["closed_loop"]) == ratios
        assert len(targets["bodies-4"]["rebatched_vs_whole"]["by_start"]) == starts
        one, promised = targets["promised_with_decoding"], targets["promised_speedup"]
        assert abs(one - 1) < abs(promised - 1) and targets["decode_ms"] > 0
        whole, rest = targets["overhead_ms"], targets["overhead_without_decoding_ms"]
        assert set(whole) == {"tensors", "bodies-1"} and set(targets["grown"]) == set(serve.OWN)
        assert whole["tensors"] == rest["tensors"] and 0 < rest["bodies-1"] < whole["bodies-1"]


COSTS = {"promised_speedup": 2.0, "decode_ms": 0.5, "plain_ms": 1.0}


def highest(case: str, start: int, *rates: float, closed: float = 1.0, found: bool = True) -> dict[str, Any]:
    rate = rates[0] if found else None
    return {
        "case": case,
        "requests": "tensors",
        "start": start,
        "highest_rate": rate,
        "rates": list(rates),
        "closed_loop_rates": [closed] * 2,
    }


def test_ratios_are_taken_load_by_load_of_every_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_targets import compare

    results = [highest("(a) x", 0, 10.0, 24.0, closed=3.0), highest("(a) x", 1, 33.0, 33.0)]
    results += [highest("(b) x", 1, 30.0, 30.0), highest("(b) x", 0, 10.0, 20.0, closed=2.0)]
    results += [highest("(c) x", 0, 5.0, 10.0), highest("(c) x", 1, 15.0, 15.0)]
    line = compare(results, COSTS)["tensors"]
    error = pytest.approx(np.std([1.0, 1.2, 1.1, 1.1], ddof=1) / 2)
    assert line["rebatched_vs_whole"] == {
        "median": pytest.approx(1.1),
        "standard_error": error,
        "by_start": [pytest.approx(1.1), pytest.approx(1.1)],
    }
    assert line["speedup"]["median"] == pytest.approx(2.2) and line["speedup_share"]["median"] == pytest.approx(1.1)
    assert line["closed_loop"]["rebatched_vs_whole"]["by_start"] == [1.5, 1.0]
    assert line["closed_loop"]["speedup_share"]["median"] == pytest.approx(1.0)


def test_a_server_that_never_kept_the_bound_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_targets import compare

    results = [highest("(a) x", 0, 10.0), highest("(b) x", 0, 8.0), highest("(b) x", 1, 8.0)]
    results += [highest("(c) x", 0, 5.0, found=False), highest("(a) x", 1, 12.0)]
    line = compare(results, COSTS)["tensors"]
    assert set(line) == {"rebatched_vs_whole", "closed_loop"}
    assert line["rebatched_vs_whole"]["by_start"] == [1.25, 1.5]
    assert line["closed_loop"]["speedup"]["by_start"] == [1.0]


def test_the_plain_network_is_compared_with_the_best_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_targets import compare

    results = [highest("(c) x", 0, 10.0), highest("(d) one", 0, 5.0), highest("(d) two", 0, 8.0)]
    line = compare(results, COSTS)["tensors"]
    assert line["plain_vs_others"] == {"median": 1.25, "standard_error": None, "by_start": [1.25]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--probes 0", "--probes must be at least 1, got 0"),
        ("--rounds -2", "--rounds must be at least 1, got -2"),
        ("--starts 0", "--starts must be at least 1, got 0"),
    ],
)
def test_a_number_of_loads_that_makes_no_sense(
    words: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import serve

    with pytest.raises(SystemExit):
        serve.main(["--cases", "plain", *words.split()])
    assert says in capsys.readouterr().err


def test_a_missing_package_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import serve

    monkeypatch.setitem(serve.PACKAGES, "litserve", ("no_such_module", "litserve"))
    with pytest.raises(SystemExit, match=r"^litserve: pip install litserve, or leave it out with --cases plain$"):
        serve.main(["--cases", "plain,litserve"])


def outcome(p99: float | None, failed: int = 0, planned: float = 0.0) -> dict[str, Any]:
    return {"failed": failed, "steady_p99_ms": p99, "planned": planned}


def test_the_range_of_the_highest_rate_is_found_by_bisection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_search import Search

    search = Search(100.0, 50.0)
    for _ in range(6):
        search.bisect(outcome(20.0 if search.middle < 80 else 60.0))
    assert search.middle == pytest.approx(80, rel=0.02)
    for result in (outcome(20.0, failed=1), outcome(None)):
        search = Search(100.0, 50.0)
        search.bisect(result)
        assert search.low == 50 and search.high < 100


def test_the_highest_rate_is_that_of_the_loads_whatever_one_bad_load_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_search import Search

    def p99(rate: float) -> float:
        return 50.0 * (rate / 80.0) ** 8.0

    search = Search(100.0, 50.0)
    search.loads = [outcome(p99(rate), planned=rate) for rate in (70.0, 75.0, 80.0, 85.0, 90.0)]
    assert search.slope == pytest.approx(8.0)
    assert search.rates == pytest.approx([80.0] * 5) and search.highest == pytest.approx(80.0)
    search.loads += [outcome(1e6, planned=80.0), outcome(20.0, failed=3, planned=76.0)]
    assert search.highest == pytest.approx(80.0, rel=0.01)
    search.loads = [outcome(p99(rate), planned=rate) for rate in (85.0, 90.0)]
    assert search.highest is None and search.middle == pytest.approx(80.0)


def test_the_first_fifth_of_a_load_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_load import Client, steady_p99

    client = Client(1, "/", [b""])
    assert steady_p99(client, 10.0) is None
    client.due = [100 + number / 100 for number in range(1000)]
    client.latencies = [5.0] * 200 + [0.01] * 790 + [0.03] * 10
    assert steady_p99(client, 10.0) == pytest.approx(30)
    client.latencies = [5.0] * 200 + [0.01] * 793 + [0.03] * 7
    assert steady_p99(client, 10.0) == pytest.approx(10)
