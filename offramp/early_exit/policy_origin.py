"""What a policy was fitted on: whether it is stale, and which command fits it again. Runs without torch."""

from collections.abc import Mapping
from typing import Any

from offramp.text import shell_word


def stale(origin: Mapping[str, Any], run: object, weights: str, epoch: int, digest: str | None = None) -> str:
    """A warning if a policy is used with other weights than those it was fitted on, else nothing.

    Args:
        origin: the provenance of the policy.
        run: folder of the run, for the command that fits it again.
        weights: `last` or `best`.
        epoch: of these weights.
        digest: of the weights; a policy that names one belongs to those weights alone.
    """
    if digest is not None and origin.get("weights_digest") == digest:  # `best` may be the very weights of `last`
        return ""
    fitted = origin.get("weights", weights), origin.get("epoch", epoch)
    again = f"fit it again with `{fitting_command(origin, run, weights)}`."
    if fitted == (weights, epoch):
        if origin.get("weights_digest", digest) == digest:
            return ""
        return (
            f"The policy was fitted on other weights than these {weights} ones, which have been replaced since: {again}"
        )
    return (
        f"The policy was fitted on the {fitted[0]} weights of epoch {fitted[1]}; these are the {weights} ones of epoch "
        f"{epoch}: {again}"
    )


def fitting_command(origin: Mapping[str, Any], run: object, weights: str = "last") -> str:
    """The command that fits a policy for the same goal again; a loss of half a point if the goal is unknown.

    Args:
        origin: the provenance of the policy.
        run: folder of the run.
        weights: `last` or `best`.
    """
    words = ["offramp calibrate", shell_word(run), *_goal_words(origin)]
    return " ".join([*words, "--weights best"] if weights == "best" else words)


def _goal_words(origin: Mapping[str, Any]) -> list[str]:
    goal = origin.get("goal")
    known = {key: value for key, value in goal.items() if type(value) in (int, float)} if isinstance(goal, dict) else {}
    for key in ("max_drop", "risk", "macs", "ms", "accuracy"):
        if key in known:
            name = "target-accuracy" if key == "accuracy" else key.replace("_", "-")
            value = f"{known[key]:.12g}" if key in ("macs", "ms") else f"{100 * known[key]:.12g}%"
            delta = [f"--delta {known['delta']:g}"] if key == "risk" and "delta" in known else []
            return [f"--{name} {value}", *delta]
    return ["--max-drop 0.5%"]
