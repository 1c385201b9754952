"""A plain run of one of several networks that were trained together."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.argument_types import check_arguments
from offramp.config import Config, flat, multi_net
from offramp.files import write_errors
from offramp.lookup import with_parameters
from offramp.measure.units import count
from offramp.runs.run import MultiNetRun, RunLike, Weights, as_trained, folder_of, open_run
from offramp.text import shell_word


@dataclass(frozen=True)
class Deployment:
    """The extracted run, with the content of its `result.json`.

    Attributes:
        run: its folder.
        kept: the network or branch that it consists of.
        last: epoch and accuracy on val of its weights; best: the same at the best epoch, None if nothing was held out.
        cost: of everything that was trained; deployed: of what is left: `macs` and `parameters`.
        source: the run that it was taken from, and its configuration.
    """

    run: str
    epochs: int
    seconds: float
    last: dict[str, Any]
    best: dict[str, Any] | None
    cost: dict[str, Any]
    provenance: dict[str, Any]
    kept: str
    deployed: dict[str, Any]
    source: dict[str, Any]

    def __str__(self) -> str:
        size = f"{count(self.deployed['macs'])} MACs, {count(self.deployed['parameters'])} parameters"
        return f"{self.run}: {self.kept} of {self.source['run']}, {size}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@check_arguments
def deploy(run: RunLike, out: Path | str, *, keep: int | str = 1) -> Deployment:
    """Extract one of several networks that were trained together (dml, one), as a run.

    Args:
        run: folder of a run that trained several networks, or an object that has one.
        out: folder of the plain run; it must not exist yet, or be empty.
        keep: number of the network or branch, counted from 1, `ensemble` (the gated ensemble), or `best` (the network
            or branch that is most accurate on val).
    Raises:
        ValueError: if the run has one network, is not finished, or has no such output.
    """
    from offramp.train import run_dir

    run, out = folder_of(run), Path(out)
    opened = open_run(run)
    if not isinstance(opened, MultiNetRun):
        raise ValueError(f"{run} was trained with {opened.config.method}, one network: there is nothing to extract")
    trained = run_dir.read_result(run)
    if trained is None:
        raise ValueError(f"{run} is not finished: `offramp train --out {shell_word(run)} --resume` continues it")
    output = _chosen(opened, str(keep))
    with run_dir.claimed(out, flat(_plain_config(opened, output)), resume=False):
        return _write(run, out, opened, output, trained)


def _write(run: Path, out: Path, opened: MultiNetRun, output: int, trained: dict[str, Any]) -> Deployment:
    """Weights, split and result of the plain run."""
    from offramp.measure.multi_net import training_cost
    from offramp.measure.provenance import provenance
    from offramp.train import run_dir

    if (run / run_dir.SPLIT).is_file():
        with write_errors(out / run_dir.SPLIT):
            (out / run_dir.SPLIT).write_bytes((run / run_dir.SPLIT).read_bytes())
    about = {
        name: _save(run, out, name, output) for name in ("last", "best") if (run / f"{name}.safetensors").is_file()
    }
    weights = {name: {key: header[key] for key in ("epoch", "val_accuracy")} for name, header in about.items()}
    result = Deployment(
        run=str(out),
        epochs=trained["epochs"],
        seconds=trained["seconds"],
        last=weights["last"],
        best=weights.get("best"),
        cost=trained["cost"],
        provenance=provenance(),
        kept=opened.net.names[output],
        deployed=training_cost(opened.net.deploy(output), tuple(opened.about["shape"])),
        source={"run": str(run), "config": flat(as_trained(opened))},
    )
    run_dir.write_result(out, dataclasses.asdict(result))
    return result


def _chosen(opened: MultiNetRun, keep: str) -> int:
    """The output (from 0) that `keep` means.

    Raises:
        ValueError: if there is none.
    """
    names = opened.net.names
    plain = [output for output, name in enumerate(names) if "ensemble" not in name]
    if keep == "ensemble" and len(plain) < len(names):
        return len(names) - 1
    if keep == "best":
        accuracy = opened.about["val_accuracy"]
        if accuracy is None:
            raise with_parameters(
                ValueError(f"keep best: {opened.folder} held nothing out (holdout 0); name one by its number"), "keep"
            )
        return max(plain, key=lambda output: accuracy[output])
    if re.fullmatch(r"\d+", keep) and 1 <= int(keep) <= len(plain):
        return int(keep) - 1
    gated = ", ensemble" if len(plain) < len(names) else ""
    message = f"keep {keep}: {opened.folder} has {names[0]} to {len(plain)}; take a number, best{gated}"
    raise with_parameters(ValueError(message), "keep")


def _plain_config(opened: MultiNetRun, output: int) -> Config:
    """The configuration that builds the plain network of an output."""
    from offramp.config import of_kind

    config, nets = as_trained(opened), multi_net.names(opened.config.net)
    if opened.net.names[output] == "gated ensemble":
        return dataclasses.replace(config, method_options={**config.method_options, "form": "ensemble"})
    alone = of_kind(config, nets[output] if len(nets) > 1 else config.net)
    return dataclasses.replace(alone, method="vanilla", method_options={})


def _save(run: Path, out: Path, weights: Weights, output: int) -> dict[str, Any]:
    """Write the output's weights; returns their header."""
    from offramp.train import checkpoint

    opened = open_run(run, weights)
    assert isinstance(opened, MultiNetRun)
    accuracy = opened.about["val_accuracy"]
    about = {**opened.about, "val_accuracy": None if accuracy is None else [accuracy[output]]}
    checkpoint.save_weights(out / f"{weights}.safetensors", opened.net.deploy(output).state_dict(), about)
    return about
