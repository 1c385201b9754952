"""More epochs for a run that has begun: possible if the epochs so far are the same in the longer run."""

from offramp.lookup import with_parameters
from offramp.methods._method import Method
from offramp.train import phases
from offramp.train.recipe import Recipe


def refuse_more_epochs(recipe: Recipe, method: Method, before: int) -> None:
    """Refuse to extend a run whose training depends on how many epochs it has.

    Args:
        recipe: with the larger number of epochs.
        before: how many epochs the run had.
    Raises:
        ValueError: saying what depends on the epochs.
    """
    reason = _reason(recipe, method)
    if reason:
        raise with_parameters(
            ValueError(
                f"epochs cannot grow from {before} to {recipe.epochs} on a resume: {reason}; "
                "choose another out to train from scratch"
            ),
            "epochs",
            "out",
        )


def _reason(recipe: Recipe, method: Method) -> str:
    """What of the epochs so far would be different in a longer run; empty if nothing is."""
    if recipe.schedule != "constant":
        return f"the learning rate of the schedule {recipe.schedule} follows the number of epochs (constant does not)"
    if recipe.warmup:
        return f"the warm-up takes a share of the run ({recipe.warmup})"
    if len(phases.tuned(recipe, method)) > 1:
        return "the run is divided into phases, which take shares of the epochs"
    if method.scheduled or method.annealed:
        return f"the method changes {', '.join((*method.scheduled, *method.annealed))} over the run"
    return ""
