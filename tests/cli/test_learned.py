"""--score learned: fitted on val, thresholds on cal, in the policy and the bundle as numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import NET

from offramp.bundle.read import load_bundle
from offramp.early_exit.exit_scores import Rule
from offramp.early_exit.fit_learned import fit
from offramp.early_exit.policy_file import load
from offramp.runs import load_run

Offramp = Callable[..., Any]


def test_predictors_are_fitted_on_val_and_run_in_a_bundle(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    ran = offramp("calibrate", run, "--macs", "0.9", "--score", "learned", "--json")
    assert ran.status == 0, ran.err
    policy = load(run / "policy.json")
    trace = load_run(run).trace("val")
    assert policy.score == "learned" and policy.predictors == fit(
        trace.logits, trace.labels, Rule("learned", temperatures=(1.0,) * 4)
    )
    assert ran.json["predictors"] == [list(weights) for weights in policy.predictors]
    assert "exit if learned" in offramp("calibrate", run, "--max-drop", "5%", "--score", "learned").out
    evaluated = offramp("evaluate", run, "--json").json
    assert sum(evaluated["adaptive"]["shares"]) == pytest.approx(1) and len(evaluated["auroc"]) == 4
    ran = offramp("export", run, "--out", tmp_path / "bundle", "--json")
    assert ran.status == 0, ran.err
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.policy.predictors == load(run / "policy.json").predictors
    stored = json.loads((tmp_path / "bundle" / "policy.json").read_text())
    assert all(isinstance(weight, float) for weights in stored["predictors"] for weight in weights)


def test_a_bound_on_the_risk_holds_for_it_as_for_any_score(offramp: Offramp, run: Path) -> None:
    ran = offramp("calibrate", run, "--risk", "20%", "--score", "learned", "--temperatures", "fit", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["certificate"]["risk"] == 0.2
    if any(ran.json["enabled"][:-1]):
        assert len(ran.json["predictors"]) == 3 and np.isfinite(ran.json["predictors"]).all()


def test_a_run_whose_val_is_its_cal_is_refused(offramp: Offramp, tmp_path: Path) -> None:
    words = "--method joint --holdout 0.3 --epochs 1 --precision 32 --json"
    assert offramp("train", *NET, *words.split(), "--data.shared_holdout", "true", "--out", tmp_path / "a").status == 0
    ran = offramp("calibrate", tmp_path / "a", "--macs", "0.9", "--score", "learned")
    assert ran.status == 1 and "has the same images in val and cal: --score learned fits its predictors" in ran.err
