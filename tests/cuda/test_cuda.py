"""On a make-believe GPU (`fake.py`): no operation mixes devices, and nothing waits for the GPU that need not."""

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp import methods
from offramp.data.load import AUGMENTATIONS
from offramp.early_exit.policy import ANSWERS, SCORES

sys.path.insert(0, str(Path(__file__).parent))
import harness

WAITS = {"option:float16": 2}
"""Waits of the steps after the first one, by check, where there must be some."""
OPTIONS = (
    "ema", "soft labels", "clipping", "learned teachers", "rare updates", "rare weights", "float32", "adamw", "mixed",
    "float16", "deterministic",
)  # fmt: skip
ELSEWHERE = ("beed", "eed", "hdkd", "joint", "l2w", "muse")
"""Methods that other quick checks train."""
QUICK = (
    *(f"light:{name}" for name in ("hdkd", "l2w")),
    *(f"option:{name}" for name in ("ema", "soft labels", "learned teachers")),  # of joint and eed
    *(f"captured:{name}" for name in ("beed", "muse")),
    *(f"step:{name}" for name in methods.available() if name not in ELSEWHERE),
    *(f"augmentation:{name}" for name in AUGMENTATIONS),
    *(f"policy:{score}/{answer}" for score, answer in product(SCORES, ANSWERS)),
    "products",
    "attention",
    "little memory",
    "refused",
    "restored",
    "read",
    "collected",
    "synchronised",
    "commands",
    "moved",
)
CAPTURED = ("joint", "one", "eed", "boostnet", "ofa", "impr", "dbt")
FULL = (
    *(f"method:{name}" for name in methods.available()),
    *(f"captured:{name}" for name in CAPTURED),
    *(f"option:{name}" for name in OPTIONS),
    "more commands",
)


SETTINGS = {
    "cpu": {"precision": "32", "memory_format": "contiguous"},
    "cuda": {"precision": "bf16", "memory_format": "auto"},
}
"""How the steps of a run are computed on each device."""


def change(step: int, before: str, device: str) -> dict[str, Any]:
    """The record of a run that continues on another device."""
    old = {f"{key}_before": value for key, value in SETTINGS[before].items()}
    return {"kind": "device", "step": step, "before": before, "device": device, **old, **SETTINGS[device]}


def wrong(check: str, result: dict[str, Any]) -> list[str]:
    """What a check found that must not be."""
    kind = check.partition(":")[0]
    actual = [f"{check}: {result['error']}"] if "error" in result else []
    actual += [f"{check} mixes devices: {operation}" for operation in result["mixed"]]
    if kind == "captured" and "error" not in result:
        actual += [] if result["captures"] else [f"{check} captures no step"]
        actual += [f"{check} captures every epoch"] if check == "captured:muse" and result["captures"] != 1 else []
        actual += [f"{check} copies while it is captured: {result['copies']}"] if result["copies"] else []
    if kind == "step" and "error" not in result and result["steps"] < 2:
        actual.append(f"{check} took {result['steps']} steps")
    if "step" in result and sum(result["step"].values()) != WAITS.get(check, 0):
        actual.append(f"{check} waits in a step: {result['step']}")
    if sum(result.get("saving", {}).values()) > (5 if check == "option:float16" else 3):  # and the scale of the losses
        actual.append(f"{check} waits while it saves: {result['saving']}")
    if sum(result.get("tracing", {}).values()) > (2 if kind == "little memory" else 1):  # one batch, and the order
        actual.append(f"{check} waits while it validates: {result['tracing']}")
    if kind == "read" and (result.get("read"), result.get("recorded")) != ([8], list(range(10))):  # those of 1 to 4
        actual.append(f"losses are read in steps {result.get('read')} and are of {result.get('recorded')}")
    if kind == "collected" and result.get("garbage") != [True, False, False, True]:
        actual.append(f"garbage is gone before, collected while capturing, and after: {result.get('garbage')}")
    if kind == "synchronised" and not result.get("same"):
        actual.append("batch norms of several processes give other results than on the CPU")
    if kind in ("augmentation", "policy") and "error" not in result:
        waits = sum(result["waits"].values())
        most = 0 if kind == "augmentation" else result["exits"]
        inside = sum(result.get("graph_waits", {}).values())  # the policy in the graph: none after the final exit
        early = min(result["exits"], 2) if kind == "policy" else 0
        actual += [f"{check} in a graph reads {result['graph_waits']}"] if inside > early else []
        actual += [f"{check} waits {waits} times, not {most}: {result['waits']}"] if waits > most else []
        actual += [] if result["same"] else [f"{check} gives other results than on the CPU"]
    if kind == "products" and result.get("products") != ["torch.float64"]:
        actual.append(f"kl_table multiplies in {result.get('products')} while TF32 is allowed")
    if kind == "moved" and result.get("told") != [1, 3, [change(2, "cuda", "cpu"), change(4, "cpu", "cuda")]]:
        actual.append(f"a run that continues on the CPU, and again on the GPU, says {result.get('told')}")
    if kind == "little memory" and not all("do not fit" in note for note in result.get("notes", [""])):
        actual.append(f"images that do not fit on the GPU: {result.get('notes')}")
    if kind == "refused" and "error" not in result:
        reasons = ("waits for the GPU at step.py:", "draws random numbers on the CPU, which a graph would repeat")
        said = [note for note in result["notes"] if note.startswith("graph: the step cannot be captured (it ")]
        right = [reason in note for reason, note in zip(reasons, said, strict=False)]
        if right != [True] * 2 or result["tried"] or result["steps"] != [6, 6]:
            actual.append(f"such steps are captured {result['tried']} times: {result['notes']}")
        if not result["segment"].startswith("the network waits for the GPU (graphed_segment.py:"):
            actual.append(f"a segment that waits: {result['segment']!r}")
    if kind == "restored" and result.get("steps") != ["cuda"]:
        actual.append(f"steps of optimizers are counted on {result.get('steps')}")
    if kind in ("commands", "more commands"):
        actual += [
            f"{said} says nothing of the GPU" for said in result.get("told", []) if '"cuda"' not in json.dumps(said)
        ]
    return actual


def assert_right(checks: tuple[str, ...]) -> None:
    if torch.version.cuda is not None:
        pytest.skip("needs a build of PyTorch without CUDA, as tests/cuda/guard.cpp takes the place of its parts")
    library = harness.guard()
    if library is None:
        pytest.skip("needs g++ to compile tests/cuda/guard.cpp")
    results = harness.run(library, checks)
    assert list(results) == list(checks)
    assert not [text for name, result in results.items() for text in wrong(name, result)]


def test_no_mixed_devices_and_no_waits_but_these() -> None:
    assert_right(QUICK)


@pytest.mark.full
def test_every_method_and_option() -> None:
    assert_right(FULL)
