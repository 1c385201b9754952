"""offramp deploy: of several networks that were trained together, a plain run of one of them."""

import dataclasses
import json as writer
import re
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from offramp.cli import emit
from offramp.config import Config, flat, multi_net
from offramp.measure.units import count
from offramp.runs import SeveralRun, open_run


def deploy(
    run: Path,
    *,
    out: Path,
    keep: str = "1",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a run of one network out of several (dml, one), for all verbs that take a run.

    Args:
        run: Folder of a run that trained several networks.
        out: Folder of the plain run; it must not exist yet, or be empty.
        keep: Number of the network or branch, `ensemble` (the gated one), or `best` (a network or branch, on val).
        json: Print one JSON object.
    """
    from offramp.cli._console import stdout

    result = write(run, out, keep)
    if json:
        emit(result)
        return
    cost = result["deployed"]
    text = f"{out}: {result['kept']} of {run}, {count(cost['macs'])} MACs, {count(cost['parameters'])} parameters"
    stdout.print(text, highlight=False, soft_wrap=True)


def write(run: Path, out: Path, keep: str) -> dict[str, Any]:
    """Make the plain run; answers what its `result.json` holds. `cost` stays that of everything that was trained.

    Raises:
        ValueError: if the run has one network, is not finished, or has no such output.
    """
    from offramp.measure.multi_net import training_cost
    from offramp.measure.provenance import provenance
    from offramp.train import run_dir

    opened = open_run(run)
    if not isinstance(opened, SeveralRun):
        raise ValueError(
            f"{run} was trained with {opened.config.method}, one network: there is nothing to take out of it"
        )
    trained = run_dir.read_result(run)
    if trained is None:
        raise ValueError(f"{run} is not finished: `offramp train` with --resume goes on with it")
    output = chosen(opened, keep)
    run_dir.claim(out, flat(plain_config(opened, output)), resume=False)
    about = {
        name: _save(run, out, name, output) for name in ("last", "best") if (run / f"{name}.safetensors").is_file()
    }
    result = {
        **trained,
        "run": str(out),
        "kept": opened.net.names[output],
        **{name: {key: about[name][key] for key in ("epoch", "val_accuracy")} for name in about},
        "deployed": training_cost(opened.net.deploy(output), tuple(opened.about["shape"])),
        "from": {"run": str(run), "config": flat(opened.config)},
        "provenance": provenance(),
    }
    run_dir.put(out / run_dir.RESULT, writer.dumps(result, indent=2) + "\n")
    return result


def chosen(opened: SeveralRun, keep: str) -> int:
    """The output (from 0) that `--keep` means.

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
            raise ValueError(f"--keep best: {opened.folder} held nothing out (holdout 0); name one by its number")
        return max(plain, key=lambda output: accuracy[output])
    if re.fullmatch(r"\d+", keep) and 1 <= int(keep) <= len(plain):
        return int(keep) - 1
    gated = ", ensemble" if len(plain) < len(names) else ""
    raise ValueError(f"--keep {keep}: {opened.folder} has {names[0]} to {len(plain)}; take a number, best{gated}")


def plain_config(opened: SeveralRun, output: int) -> Config:
    """The configuration that builds the plain network of an output."""
    from offramp.config import of_kind

    config, nets = opened.config, multi_net.names(opened.config.net)
    if opened.net.names[output] == "gated ensemble":
        own = {**config.method_options, "form": "ensemble"}
        return dataclasses.replace(config, method_options=own)
    alone = of_kind(config, nets[output] if len(nets) > 1 else config.net)
    return dataclasses.replace(alone, method="vanilla", method_options={})


def _save(run: Path, out: Path, weights: str, output: int) -> dict[str, Any]:
    """Write the output's weights; answers their header."""
    from offramp.train import checkpoint

    opened = open_run(run, weights)
    assert isinstance(opened, SeveralRun)
    accuracy = opened.about["val_accuracy"]
    about = {**opened.about, "val_accuracy": None if accuracy is None else [accuracy[output]]}
    checkpoint.save_weights(out / f"{weights}.safetensors", opened.net.deploy(output).state_dict(), about)
    return about
