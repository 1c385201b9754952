"""benchmarks/serve.py on a tiny network for a few seconds: every case has its line; what it measures is no matter."""

import json
from pathlib import Path

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
    words = ["--network", "tiny", "--width", "8", "--probes", "2,1", "--rounds", "2", "--minutes", "0.2"]
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
        assert all(set(targets[name]["closed_loop"]) == ratios for name in ("tensors", "bodies-1"))
        assert 1 < targets["promised_with_decoding"] < targets["promised_speedup"] and targets["decode_ms"] > 0
        whole, rest = targets["overhead_ms"], targets["overhead_without_decoding_ms"]
        assert set(whole) == {"tensors", "bodies-1"} and set(targets["grown"]) == set(serve.OWN)
        assert whole["tensors"] == rest["tensors"] and 0 < rest["bodies-1"] < whole["bodies-1"]


def test_ratios_of_a_closed_loop_are_those_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_targets import compare

    rates = {"rebatched": [10.0, 24.0], "whole": [10.0, 20.0], "plain": [5.0, 10.0]}
    again = {"rebatched": [33.0], "whole": [30.0], "plain": [15.0]}
    results = [{"case": "closed loop", "requests": "tensors", "closed_loop_rates": each} for each in (rates, again)]
    line = compare(results, {"promised_speedup": 2.0, "decode_ms": 0.5, "plain_ms": 1.0})["tensors"]["closed_loop"]
    error = 0.1 / 3**0.5
    assert line["rebatched_vs_whole"] == pytest.approx([1.1, error])
    assert line["speedup"] == pytest.approx([2.2, 2 * error]) and line["speedup_share"] == pytest.approx([1.1, error])


def test_the_highest_rate_of_several_starts_is_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_targets import compare

    rates = {"(a)": [10.0, 12.0, 30.0], "(b)": [None, 8.0, None], "(c)": [None, None, None]}
    results = [
        {"case": case, "requests": "tensors", "highest_rate": rate} for case, each in rates.items() for rate in each
    ]
    line = compare(results, {"promised_speedup": 2.0, "decode_ms": 0.5, "plain_ms": 1.0})["tensors"]
    assert line == {"rebatched_vs_whole": 1.5}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--rounds 1", "--rounds must be at least 2, or 0 for none, got 1"),
        ("--rounds -2", "--rounds must be at least 2, or 0 for none, got -2"),
        ("--starts 0", "--starts must be at least 1, got 0"),
    ],
)
def test_a_number_of_rounds_or_starts_that_makes_no_sense(
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


def test_the_highest_rate_is_found_by_bisection_and_one_bad_search_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serve_search import Search

    def outcome(p99: float, failed: int = 0) -> dict[str, float]:
        return {"failed": failed, "steady_p99_ms": p99}

    search = Search({"rate": 100.0}, 50.0)
    for seed in range(3):
        search.begin()
        for _ in range(6):
            keeps_up = search.rate < 80 and seed != 1
            search.tell(outcome(20.0 if keeps_up else 60.0))
        search.end()
    assert search.highest == pytest.approx(80, rel=0.02) and len(search.rates) == 2
    search = Search({"rate": 100.0}, 50.0)
    search.begin()
    search.tell(outcome(20.0, failed=1))
    search.end()
    assert search.highest is None and search.high < 100
