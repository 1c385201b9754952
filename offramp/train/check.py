"""What cannot be trained is refused before anything is written."""

from torch import nn

from offramp.data.splits import DataSet
from offramp.lookup import ParameterError
from offramp.methods._method import Method
from offramp.train import accumulation, phases, sharding
from offramp.train.recipe import Recipe


def refuse(method: Method, recipe: Recipe, net: nn.Module, data: DataSet) -> None:
    """Refuse settings that the method, the network and the data cannot be trained with.

    Raises:
        ValueError: if the method learns from held-out batches and there is no `val`, its step does not work with the
            optimizer or the precision, accuracies of a split that does not exist are to be logged or watched, batches
            are too small to be divided or must stay whole (`accumulate`), its phases conflict with `tune` or outnumber
            the epochs, or the network cannot be divided into backbone and exits as `tune` requires.
    """
    phases.refuse_net(recipe, method, net)
    _refuse_data(method, recipe, data)
    _refuse_precision(method, recipe, net)
    if recipe.accumulate > 1 and (why := accumulation.why_not(method, phases.tuned(recipe, method))):
        raise ParameterError(f"{why}: take accumulate=1, got {recipe.accumulate}", "accumulate")
    least = 2 * method.turns * recipe.devices  # a batch norm cannot train on a single sample
    if method.turns > 1 and recipe.batch_size < least:
        raise ParameterError(
            f"this method divides every batch into {method.turns}: batch_size must be at least {least}, got "
            f"{recipe.batch_size}",
            "batch_size",
        )
    phases.spans(recipe, method)


def _refuse_data(method: Method, recipe: Recipe, data: DataSet) -> None:
    """Refuse settings that need a split which these data do not have, and optimizers that the method cannot use."""
    if method.needs_held_out and "val" not in data.splits:
        raise ParameterError(
            "this method learns from the val split while it trains, but nothing is held out: set holdout above 0",
            "holdout",
        )
    if method.optimizers and recipe.optimizer not in method.optimizers:
        raise ParameterError(
            f"this method looks ahead with the optimizer's own step, implemented for {', '.join(method.optimizers)}: "
            f"take optimizer={method.optimizers[0]}, got {recipe.optimizer}",
            "optimizer",
        )
    for split in recipe.log_accuracy:
        if split not in data.splits:
            raise ParameterError(
                f"log_accuracy names {split}, and these data have {', '.join(data.splits)} alone", "log_accuracy"
            )
    if recipe.patience and "val" not in data.splits:
        raise ParameterError(
            "patience needs the accuracy on val, but nothing is held out: set holdout above 0, or patience=0",
            "patience",
            "holdout",
        )


def _refuse_precision(method: Method, recipe: Recipe, net: nn.Module) -> None:
    """Refuse precisions and processes with which this method does not compute what it should."""
    looks_ahead = method.needs_held_out or method.optimizers
    if recipe.sync_batch_norm and looks_ahead and recipe.devices > 1:
        raise ParameterError(
            "sync_batch_norm has no forward-mode derivative, and this method differentiates through a step of the "
            "optimizer: leave it out",
            "sync_batch_norm",
        )
    if recipe.strategy == "fsdp" and recipe.devices > 1 and (what := sharding.why_not(method, recipe, net)):
        raise ParameterError(f"strategy=fsdp does not divide {what}: take strategy=ddp", "strategy", "ema")
    if recipe.precision == "16" and looks_ahead:
        raise ParameterError(
            "precision=16 scales the losses, and this method differentiates through a step of the optimizer: take "
            "precision=bf16, tf32 or 32",
            "precision",
        )
