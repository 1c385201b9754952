"""Labelled images of a running server, and a policy that is fitted to the bundle's goal on them. Runs without torch.

A new policy never replaces another one: it is written beside the bundle's own, as `policy-2.json` and so on.
"""

import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import POLICY
from offramp.bundle.read import Bundle, read_manifest
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import load_with_origin
from offramp.early_exit.score_bins import exit_counts
from offramp.files import DRAFT
from offramp.serve.answers import all_exits

FEWEST = 100
"""Labelled images that a new calibration needs at least."""


class Feedback:
    """The logits of every exit for the newest labelled images of one version.

    Args:
        bundle: whose segments compute them.
        most: images that are kept.
    """

    def __init__(self, bundle: Bundle, most: int) -> None:
        self.bundle = bundle
        self._kept: deque[tuple[NDArray[np.float32], int]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, inputs: NDArray[np.float32], label: int) -> bool:
        """Keep one image, (1, channels, size, size), with its label; whether the policy's answer for it is right."""
        logits = np.zeros((self.bundle.manifest.exits, len(self.bundle.manifest.classes)), np.float32)
        answered: int | None = None
        for exit, each, answer, _, leaves in all_exits(self.bundle, inputs):
            logits[exit] = each[0]
            if answered is None and leaves[0]:
                answered = int(answer[0].argmax())
        self._kept.append((logits, label))
        return answered == label

    def recalibrate(self) -> tuple[str, dict[str, Any]]:
        """Fit a policy with the bundle's exits to its goal on the labelled images, and write it beside the others.

        Returns:
            The name of its file, and what it does on these images.
        Raises:
            ValueError: if the bundle has no goal, there are too few images, the goal cannot be reached on them, or the
                folder cannot be written or holds another bundle now.
        """
        if len(self) < FEWEST:
            raise ValueError(f"a new calibration needs {FEWEST} labelled images at least, there are {len(self)}")
        digest = self.bundle.manifest.digest
        if read_manifest(self.bundle.folder).digest != digest:
            raise ValueError(
                f"{self.bundle.folder} holds another bundle than the one that is served: load the model again, then "
                "send labelled images to it"
            )
        origin = load_with_origin(self.bundle.folder / POLICY)[1]
        if not origin.get("goal") or not origin.get("segment_costs"):
            raise ValueError(
                f"{self.bundle.folder / POLICY} says no goal: export a run that was calibrated, so that there is one "
                "to calibrate for"
            )
        samples = list(self._kept)
        logits = np.stack([one for one, _ in samples], axis=1)
        policy, about = fit(self.bundle.policy, origin, logits, np.array([label for _, label in samples]))
        summary = {
            "bundle": digest,
            "split": "feedback",
            "samples": len(samples),
            "expected": about,
            "scores": exit_counts(policy, logits),
        }
        text = policy.to_json({**origin, **summary}) + "\n"
        return _write(self.bundle.folder, text), {**about, "samples": len(samples)}


def fit(
    policy: ExitPolicy, origin: Mapping[str, Any], logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[ExitPolicy, dict[str, Any]]:
    """The policy with the same exits that reaches a goal on (E, N, C) logits, and its accuracy and cost there.

    Args:
        origin: what `calibrate` stored beside the policy: its goal and the costs of its segments.
    Raises:
        ValueError: if the goal cannot be reached.
        ImportError: if jaxtyping is not installed.
    """
    try:
        from offramp.early_exit.calibrate import calibrate
        from offramp.early_exit.certify import certify_exits
        from offramp.early_exit.exit_scores import rule_of_policy
    except ModuleNotFoundError as error:
        raise ImportError(f"a new calibration needs {error.name}: pip install {error.name}") from None
    goal = origin["goal"]
    plain = float((logits[-1].argmax(1) == labels).mean())
    if goal.get("risk") is not None:
        outcome = certify_exits(policy, goal, logits, labels, origin["segment_costs"]).outcome
        if outcome.policy.enabled != policy.enabled:
            raise ValueError(f"no policy with these exits is certified for the risk {goal['risk']:g} on these images")
    else:
        budget = next((goal[unit] for unit in ("macs", "ms") if unit in goal), None)
        accuracy = max(0.0, plain - goal["max_drop"]) if "max_drop" in goal else goal.get("accuracy")
        outcome = calibrate(
            logits,
            labels,
            segment_costs={policy.enabled: origin["segment_costs"]},
            budget=budget,
            accuracy=None if budget is not None else accuracy,
            rule=rule_of_policy(policy),
        )
    outcome_policy = outcome.policy
    if outcome_policy.enabled != policy.enabled:  # exits that no sample takes: their segments run all the same
        outcome_policy = _with_exits(outcome_policy, policy.enabled)
    about = {"accuracy": outcome.accuracy, "cost": outcome.cost, "plain_accuracy": plain}
    return outcome_policy, {**about, "shares": list(outcome.shares)}


def _with_exits(policy: ExitPolicy, enabled: tuple[bool, ...]) -> ExitPolicy:
    """The same policy with more exits enabled, which no sample takes; only for answers of a single exit."""
    if policy.answer != "exit" or policy.score == "patience":
        raise ValueError("the policy for these images needs other exits than the bundle has segments for")
    from dataclasses import replace

    from offramp.early_exit.policy import NEVER

    thresholds = tuple(
        float(level) if on else NEVER for level, on in zip(policy.thresholds, policy.enabled, strict=True)
    )
    return replace(policy, thresholds=thresholds, enabled=enabled)


def _write(folder: Path, text: str) -> str:
    """Write the policy under the next free number; never over another file."""
    json.loads(text)
    part = folder / f"{DRAFT}policy-{os.getpid()}"
    try:
        part.write_text(text)
        try:
            return _link(part, folder)
        finally:
            part.unlink()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): the new policy is not kept") from None


def _link(part: Path, folder: Path) -> str:
    """Link the file under the next free name of a policy."""
    for number in range(2, 10**6):
        path = folder / f"policy-{number}.json"
        try:
            os.link(part, path)  # fails if it exists, unlike a rename
        except FileExistsError:
            continue
        return path.name
    raise ValueError(f"{folder} holds too many policies")
