"""Worked examples of the losses, from the papers' formulas and their authors' code: losses and gradients to 1e-8."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.losses.schedules import cosine, rising_powers
from offramp.methods import find
from offramp.methods.beed import balancing, importances
from offramp.outputs import Batch, ExitOutputs

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
EXITS, SAMPLES, CLASSES, WIDTH = 4, 3, 5, 6
MUSE_BIG = {"beta_begin": 1e-2, "beta_end": 1e-2}
PRINTED = {**MUSE_BIG, "t2": False, "detach_teachers": False, "detach_superpeer": False}
FINAL_TEACHES = {"teachers": (-1,), "final_learns": False}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ce_vanilla": ("vanilla", {}),
    "ce_joint": ("joint", {}),
    "sd_luan_code_default": ("byot", {}),
    "sd_luan_code_big": ("byot", {"alpha": 0.3, "beta": 0.01}),
    "sd_kl_form": ("byot", {"alpha": 0.3, "beta": 0.01, "imitation": "kl"}),
    "sd_journal_code": (
        "byot",
        {
            "alpha": 0.3,
            "beta": 0.03,
            "t2": False,
            "final_ce_weight": 1.0,
            "features": "norm",
            "without_features": (-2,),
            "adapt": "all",
        },
    ),
    "dbt_constT": ("dbt", {"rising": False}),
    "dbt_annealT_step0": ("dbt", {}),
    "muse_default_cifar": ("muse", {}),
    "muse_big_beta": ("muse", MUSE_BIG),
    "muse_imagenet": ("muse", {**MUSE_BIG, "alpha": 0.1, "temperature": 20.0}),
    "muse_noT2": ("muse", {**MUSE_BIG, "t2": False}),
    "muse_nodetach_printed_eq5": ("muse", PRINTED),
    "msd_reverseKL_detached": ("msd", {**MUSE_BIG, "reverse_kl": True}),
    "msd_reverseKL_nodetach": ("msd", {**PRINTED, "reverse_kl": True}),
    "eed_kl_a1_b0": ("eed", {"beta": 0.0}),
    "eed_kl_a0.1_code": ("eed", {"alpha": 0.1, "beta": 0.0}),
    "eed_mse_a1_b0": ("eed", {"imitation": "mse", "beta": 0.0}),
    "eed_mse_a1_b1": ("eed", {"imitation": "mse"}),
    "eed_kl_a1_b1": ("eed", {}),
    "eed_mse_teacher_exit1_main": ("eed", {"imitation": "mse", "beta": 0.0, "teachers": (1, -1)}),
    # What EED's paper calls DBT and SD: its own loss with the final exit as the only teacher and no student.
    "eedpaper_dbt_kl": ("eed", {**FINAL_TEACHES, "beta": 0.0}),
    "eedpaper_dbt_mse": ("eed", {**FINAL_TEACHES, "beta": 0.0, "imitation": "mse"}),
    "eedpaper_sd_mse_feat": ("eed", {**FINAL_TEACHES, "imitation": "mse"}),
    "beed_default": ("beed", {}),
    "beed_repo_EED_mode_default_flags": ("beed", {"mode": "eed"}),
    "beed_repo_EED_mode_B1": ("beed", {"mode": "eed", "importance": 1.0}),
    "beed_repo_KD_mode": ("beed", {"mode": "kd"}),
    "naive_dkd": ("dense", {"weight": 0.5}),
}


def inputs(relu: bool) -> tuple[ExitOutputs, Batch]:
    """z[k,b,c] = 2 sin(1+17k+5b+c), F[k,b,d] = cos(.7(1+13k+7b+d)), as leaves in float64; maps hold the features."""
    k, b, c = (torch.arange(n, dtype=torch.float64) for n in (EXITS, SAMPLES, CLASSES))
    d = torch.arange(WIDTH, dtype=torch.float64)
    logits = 2 * torch.sin(1 + 17 * k[:, None, None] + 5 * b[:, None] + c)
    features = torch.cos(0.7 * (1 + 13 * k[:, None, None] + 7 * b[:, None] + d))
    leaves = tuple(feature.clone().requires_grad_() for feature in (features.relu() if relu else features))
    maps = tuple(leaf[:, :, None, None] for leaf in leaves)
    batch = Batch(torch.zeros(SAMPLES, 1), torch.tensor([1, 3, 0]), torch.arange(SAMPLES))
    return ExitOutputs(logits.requires_grad_(), leaves, maps), batch


def identity(objective: nn.Module) -> None:
    """The journal code's adaptation layers, set to do nothing, as in the worked example."""
    objective.prepare_for_exits(exits=EXITS, widths=(WIDTH,) * EXITS)
    for layer in objective.match.layers.values():
        layer.double()
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)


def norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.norm())


@pytest.mark.parametrize("entry", CASES)
def test_loss_and_gradients(entry: str) -> None:
    expected, (name, hyper) = GOLDEN[entry], CASES[entry]
    objective = find(name).build(**hyper).objective
    if hyper.get("adapt") == "all":
        identity(objective)
    outputs, batch = inputs(relu="features" in expected)
    loss = sum(objective(outputs, batch, 0.0).values())
    loss.backward()

    assert loss.item() == pytest.approx(expected["loss"], rel=1e-8)
    assert norm(outputs.logits.grad) == pytest.approx(expected["gz"], rel=1e-8)
    assert [norm(row) for row in outputs.logits.grad] == pytest.approx(expected["gz_k"], rel=1e-8, abs=1e-14)
    got = [norm(feature.grad) for feature in outputs.features]
    assert got == pytest.approx(expected.get("gF_k", [0.0] * EXITS), rel=1e-8, abs=1e-16)
    assert math.hypot(*got) == pytest.approx(expected.get("gF", 0.0), rel=1e-8)


def test_every_entry_of_these_methods_is_worked() -> None:
    ours = ("ce_", "sd_", "dbt_", "muse_", "msd_", "eed_", "eedpaper_", "beed_", "naive_dkd")
    elsewhere = {"muse_beta_schedule", "beed_weights"}
    assert {entry for entry in GOLDEN if entry.startswith(ours)} - elsewhere == set(CASES)


def test_the_inputs_are_the_golden_ones() -> None:
    outputs, _ = inputs(relu=False)
    torch.testing.assert_close(outputs.logits, torch.tensor(GOLDEN["_inputs"]["z"], dtype=torch.float64))
    torch.testing.assert_close(torch.stack(outputs.features), torch.tensor(GOLDEN["_inputs"]["F"], dtype=torch.float64))


@pytest.mark.parametrize("state", ["state", "state_T2"])
def test_dbt_temperature_rises_after_the_step(state: str) -> None:
    expected = GOLDEN["dbt_annealT_step0"][state]
    objective = importlib.import_module("offramp.methods.dbt").build(temperature=expected["T0"]).objective
    outputs, batch = inputs(relu=False)
    assert float(objective.temperature.value(torch.float64)) == expected["T0"]
    objective(outputs, batch, 0.0)
    assert float(objective.temperature.value(torch.float64)) == pytest.approx(expected["T_next"], rel=1e-12)


def test_muse_beta_schedule() -> None:
    golden = GOLDEN["muse_beta_schedule"]
    got = [cosine(golden["begin"], golden["end"], epoch / golden["total"]) for epoch in golden["epochs"]]
    assert got == pytest.approx(golden["correct"], rel=1e-12)
    assert got != pytest.approx(golden["as_printed"], rel=0.5)


@pytest.mark.parametrize(("epoch", "beta"), list(zip([0, 50, 100, 150, 199], GOLDEN["muse_beta_schedule"]["correct"])))
def test_muse_anneals_its_feature_term(epoch: int, beta: float) -> None:
    outputs, batch = inputs(relu=True)
    annealed = find("muse").build().objective(outputs, batch, epoch / 200)["features"]
    unit = find("muse").build(beta_begin=1.0, schedule="constant").objective(outputs, batch, 0.0)["features"]
    assert (annealed / unit).item() == pytest.approx(beta, rel=1e-9)


def test_beed_weights() -> None:
    golden = GOLDEN["beed_weights"]
    logits = inputs(relu=False)[0].logits
    a = rising_powers(balancing(1.15, EXITS), logits).flip(0).tolist()
    assert importances(1.6, logits).tolist() == pytest.approx(golden["ensemble_B1_6"], rel=1e-12)
    assert a == pytest.approx(golden["kd_A1_15"], rel=1e-12)
    assert [2 - value for value in a] == pytest.approx(golden["ce_A1_15"], rel=1e-12)
    assert balancing(None, EXITS) == pytest.approx(1.15, rel=1e-12)
