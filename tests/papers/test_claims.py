"""Claims are decided by paired seeds: they hold, do not hold, or are undecided; what is not run is not decided."""

import json
from dataclasses import replace

import pytest

from offramp.papers.catalog import quick, trainings
from offramp.papers.claims import Claim, Term, claims, decided
from offramp.papers.lines import measured

A, B = "c100.resnet18.sketch.muse", "c100.resnet18.sketch.joint"


def claim(*exits: int | str, margin: float | None = None) -> Claim:
    contrasts = tuple((Term(1, A, exit), Term(-1, B, exit)) for exit in exits)
    return Claim("a claim", "muse-table-4", "A is better than B", "top1", margin, contrasts)


@pytest.fixture
def lines(line, write):
    """Lines of A and B with these accuracies of exit 1 per seed; the other exits are equal."""

    def built(ours: list[float], theirs: list[float]):
        ledger = [line(A, (share, 0.5, 0.5, 0.5), seed) for seed, share in enumerate(ours)]
        ledger += [line(B, (share, 0.5, 0.5, 0.5), seed) for seed, share in enumerate(theirs)]
        return measured(write(ledger), trainings().values(), quick()).lines

    return built


def test_a_claim_holds_if_the_interval_is_above_zero(lines) -> None:
    result = decided(claim(1), lines([0.51, 0.53, 0.55], [0.41, 0.42, 0.45]))
    assert result.verdict == "holds"
    (contrast,) = result.contrasts
    assert contrast.seeds == [0, 1, 2]
    assert contrast.difference == pytest.approx(31 / 3)
    assert contrast.interval95 == pytest.approx([31 / 3 - 1.4342, 31 / 3 + 1.4342], abs=1e-3)  # t(2) = 4.3027


def test_it_does_not_hold_if_the_interval_is_below(lines) -> None:
    assert decided(claim(1), lines([0.41, 0.42, 0.45], [0.51, 0.53, 0.55])).verdict == "does not hold"


def test_one_contrast_that_does_not_hold_is_enough(lines) -> None:
    both = decided(claim(1, 2), lines([0.41, 0.42, 0.45], [0.51, 0.53, 0.55]))
    assert [one.verdict for one in both.contrasts] == ["does not hold", "undecided"]
    assert both.verdict == "does not hold"


def test_it_is_undecided_with_zero_in_the_interval_or_one_seed(lines) -> None:
    assert decided(claim(1), lines([0.5, 0.3, 0.5], [0.4, 0.5, 0.45])).verdict == "undecided"
    one = decided(claim(1), lines([0.9], [0.1, 0.1]))
    assert (one.verdict, one.contrasts[0].interval95, one.contrasts[0].seeds) == ("undecided", None, [0])


def test_it_is_not_run_without_a_common_seed(lines) -> None:
    result = decided(claim(1), lines([], [0.5]))
    assert (result.verdict, result.contrasts[0].difference) == ("not run", None)


def test_a_line_without_the_exit_or_the_metric_is_no_accuracy_of_zero(line, write) -> None:
    ledger = [line(A, (0.5, 0.6), seed) for seed in range(3)] + [line(B, (0.4,), seed) for seed in range(3)]
    by_training = measured(write(ledger), trainings().values(), quick()).lines
    assert decided(claim(2), by_training).verdict == "not run"
    assert decided(claim(1), by_training).contrasts[0].difference == pytest.approx(10)
    without_top5 = {name: {seed: one._replace(top5=None) for seed, one in by_training[name].items()} for name in (A, B)}
    assert decided(replace(claim(1), metric="top5"), without_top5).verdict == "not run"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([0.501, 0.502, 0.499], "holds"), ([0.55, 0.551, 0.549], "does not hold"), ([0.48, 0.53, 0.5], "undecided")],
)
def test_within_a_margin(lines, ours, verdict) -> None:
    assert decided(claim(1, margin=1.0), lines(ours, [0.5, 0.5, 0.5])).verdict == verdict


def test_every_claim_of_the_papers_is_read() -> None:
    known = claims()
    assert len(known) >= 30
    assert len(known["muse-sml-over-joint"].contrasts) == 4
    gains = known["muse-sml-gains-on-sketch"].contrasts
    assert [[term.sign for term in contrast] for contrast in gains] == [[1, -1, -1, 1]]
    assert {term.exit for contrast in known["muse-over-sd"].contrasts for term in contrast} == {1, 2, 3, "final"}
    assert json.dumps(known["beed-insensitive"].margin) == "1.0"
