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
    serve.main(["--cases", cases, "--minutes", "0.2", "--width", "8", "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert capsys.readouterr().out.splitlines() == out.read_text().splitlines()
    loads = [line for line in lines if "highest_rate" in line]
    assert sorted({line["images"] for line in loads}) == [1, 4] and all(line["at_half"]["answered"] for line in loads)
    assert len(loads) == 2 * len(set(cases.split(",")) & set(serve.CASES))
    assert all(line["about"]["versions"] and line["about"]["cores"] for line in lines)
    if "overhead" in cases:
        overhead = [line for line in lines if line["case"].startswith("overhead")]
        assert [line["requests"] for line in overhead] == ["tensors", "bodies-1"] * 2
