"""A run's folder: its files, and who may write into it."""

import json
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from offramp import digests, trust
from offramp.files import DRAFT, read_json, read_yaml, replacing, write_errors
from offramp.lookup import with_parameters
from offramp.renamed import as_now
from offramp.text import as_typed, quoted, shell_word
from offramp.train import log
from offramp.train.run_lock import LOCK, writing

CONFIG = "config.yaml"
RESULT = "result.json"
METRICS = "metrics.jsonl"
POLICY = "policy.json"
_EPOCH = {"epoch": int, "val_accuracy": ([float], None)}
RESULT_CONTENT = {
    "epochs": int,
    "seconds": float,
    "last": _EPOCH,
    "best": (_EPOCH, None),
    "cost?": {str: object},
    "provenance?": ({str: object}, None),
    "metrics?": {"bytes": int, "blake2b": str},
    "config?": str,
    "digest?": str,
}
"""Content of `result.json`; see `offramp.schema`."""
SPLIT = "split.safetensors"
BEFORE_TRAINING = (CONFIG, SPLIT, LOCK)
"""What a run may hold that was stopped before its first step, or is just being started by another process."""
PROCESSES = {"accumulate", "devices", "strategy"}
"""Options that may differ when a run is resumed, though they change how results are rounded."""
FREE = {"data-dir", "checkpoint-every", "graph", "threads", "tensorboard", "log-accuracy", "goal-macs"}
"""Options that may differ when a run is resumed: they do not change the results, threads only by rounding."""


def begun(folder: Path) -> bool:
    """Whether training has written anything into the folder yet."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", RESULT))


def claim(folder: Path, config: dict[str, Any], resume: bool) -> None:
    """Create the folder of this run, or verify that it is; errors as in `claimed`."""
    with claimed(folder, config, resume):
        pass


@contextmanager
def claimed(folder: Path, config: dict[str, Any], resume: bool, *, extend: bool = False) -> Iterator[None]:
    """Create the folder of this run, or verify that it is, and hold it for writing.

    Args:
        extend: the run may get more epochs than it had; it is then no longer finished.
    Raises:
        ValueError: if it contains another run, this one without `resume`, or anything else.
        offramp.train.run_lock.InUse: if another process writes into it.
    """
    trust.remember(config)
    check_folder(folder, config, resume, extend=extend)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        if not check_folder(folder, config, resume, extend=extend) or epochs_before(folder, config):
            (folder / RESULT).unlink(missing_ok=True)  # first: a result of fewer epochs must not meet the new config
            put(folder / CONFIG, yaml.safe_dump(config, sort_keys=False))
        yield


def writing_into(folder: Path) -> AbstractContextManager[None]:
    """Hold the folder for writing if it is that of a run, or within one; see `offramp.train.run_lock.writing`."""
    run = next((place for place in (folder, folder.parent) if (place / CONFIG).is_file()), None)
    return nullcontext() if run is None else writing(run)


def epochs_before(folder: Path, config: dict[str, Any]) -> int | None:
    """The epochs that the run in the folder has by its configuration; None unless `config` has more of them."""
    if not ((folder / CONFIG).is_file() and begun(folder)):
        return None
    epochs = read_config(folder).get("epochs")
    return epochs if isinstance(epochs, int) and epochs < config["epochs"] else None


def difference(
    stored: Mapping[str, Any], config: Mapping[str, Any], free: AbstractSet[str] = frozenset()
) -> str | None:
    """The first option with another value in `config`, as `KEY is A there, not B (and 2 more)`; None if there is none.

    Args:
        free: options that may differ.
    """
    one, other = comparable(stored), comparable(config)
    differing = [key for key in sorted({*stored, *config} - free) if one.get(key) != other.get(key)]
    if not differing:
        return None
    key = differing[0]
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return f"{key} is {quoted(stored.get(key))} there, not {quoted(config.get(key))}{more}"


def check_folder(folder: Path, config: dict[str, Any], resume: bool, *, extend: bool = False) -> bool:
    """Whether the folder already contains this run; nothing is written. Errors as in `claimed`."""
    if folder.exists() and not folder.is_dir():
        raise with_parameters(ValueError(f"{folder} is a file, but a run is a folder; choose another out"), "out")
    # Listed before looking for a run: what another process adds in between, when it starts one, is not refused.
    names = [entry.name.removeprefix(DRAFT) for entry in folder.iterdir()] if folder.is_dir() else []
    if (folder / CONFIG).is_file() and begun(folder):
        stored = read_config(folder)
        free = {*FREE, *PROCESSES} | ({"epochs"} if extend and epochs_before(folder, config) else set())
        if differs := difference(stored, config, free):
            message = (
                f"{folder} contains a run with another configuration: {differs}; nothing was overwritten. Choose "
                "another out"
            )
            raise with_parameters(ValueError(message), "out")
        if not resume:
            raise with_parameters(
                ValueError(f"{folder} already contains this run; pass resume to continue it, or choose another out"),
                "resume",
                "out",
            )
        return True
    if (owner := _within(folder)) is not None:
        raise with_parameters(ValueError(f"{folder} is within {owner}; choose another out"), "out")
    if not {*names} <= {*BEFORE_TRAINING}:
        raise with_parameters(
            ValueError(f"{folder} is not empty and does not contain an offramp run; choose another out"), "out"
        )
    return False


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration in the form in which two are compared.

    Options of the data are as they are typed (what a network expects comes as numbers), and renamed values as of now.
    """
    return {key: as_typed(value) if key.startswith("data.") else value for key, value in as_now(config).items()}


def _within(folder: Path) -> str | None:
    """The run or bundle that a folder is in: who moves or deletes that one does not expect another in it."""
    for parent in folder.resolve().parents:
        if (parent / CONFIG).is_file() and begun(parent):
            return f"the run {parent}"
        if (parent / "manifest.json").is_file() and (parent / POLICY).is_file():
            return f"the bundle {parent}"
    return None


def put(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with write_errors(path), replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run.

    Raises:
        ValueError: if the folder is not a run, or its configuration cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not a run: {_instead(folder)}")
    return read_yaml(path)


def _instead(folder: Path) -> str:
    """What a folder without a configuration seems to be, and what to do."""
    if (folder / "manifest.json").is_file():
        command = f"offramp predict {shell_word(folder)} IMAGES..."
        return f"it is a bundle (`{command}` runs it); name the run it was exported from"
    if folder.is_dir():
        runs = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG}"))
        if runs:
            more = f" and {len(runs) - 4} more" if len(runs) > 4 else ""
            return f"it contains runs, name one of them: {', '.join(runs[:4])}{more}"
        return f"it has no {CONFIG} (`offramp train --out {shell_word(folder)}` creates one)"
    if folder.exists():
        return "it is a file, but a run is a folder"
    return f"the folder does not exist (`offramp train --out {shell_word(folder)}` creates one)"


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of `result.json`; None if training has not finished.

    Raises:
        ValueError: if the file cannot be read.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    result: dict[str, Any] = read_json(path, RESULT_CONTENT)
    if result.get("digest", _digest(result)) != _digest(result):
        raise ValueError(f"{path} was changed since it was written: restore it, or remove it and resume the run")
    return result


def no_weights(folder: Path, name: str) -> Exception:
    """What to do about a run without its `last.safetensors` or `best.safetensors`: why it has none, as an error."""
    if not (folder / RESULT).is_file():
        message = f"{folder} has no {name} yet: train it to the end (resume), or take other weights"
    elif name == "best.safetensors":
        message = f"{folder} has no {name}: it held nothing out to choose an epoch by, or lost it; take weights=last"
    else:
        message = (
            f"{folder} was trained to the end but has no {name}: restore the file, take weights=best, or train again "
            "in another folder"
        )
    return with_parameters(ValueError(message), "resume", "weights")


def write_result(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `result.json` at the end of training, with the digests of itself, the configuration and the records."""
    metrics = folder / METRICS
    records = metrics.read_bytes() if metrics.is_file() else None
    about: dict[str, Any] = {"config": _config_digest(read_config(folder))} if (folder / CONFIG).is_file() else {}
    if records is not None:
        about["metrics"] = {"bytes": len(records), "blake2b": digests.of_bytes(records)}
    result = json.loads(json.dumps({**values, **about}))
    put(folder / RESULT, json.dumps({**result, "digest": _digest(result)}, indent=2) + "\n")


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that has changed since the run was trained; the data directory may change.

    Raises:
        ValueError: naming the file.
    """
    result = read_result(folder)
    if result and result.get("config", "") not in ("", _config_digest(config)):
        raise ValueError(f"{folder / CONFIG} was changed since the run was trained: restore it")


def _config_digest(config: Mapping[str, Any]) -> str:
    fixed = {key: value for key, value in config.items() if key not in {*FREE, "data"}}
    return digests.of_bytes(json.dumps(fixed, sort_keys=True, default=str).encode())


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, none if the file is missing.

    Raises:
        ValueError: naming the file and the line that is not a record, or if the records have changed since training.
    """
    path, result = folder / METRICS, read_result(folder)
    known = (result or {}).get("metrics")
    if known and path.is_file() and digests.of_bytes(path.read_bytes()[: known["bytes"]]) != known["blake2b"]:
        log.read(path)  # which names the line if one holds no record
        raise ValueError(f"{path} was changed since training ended: restore it, or remove it to do without its records")
    return log.read(path)


def _digest(result: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in result.items() if key != "digest"}, sort_keys=True)
    return digests.of_bytes(text.encode())
