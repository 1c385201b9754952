"""Which lines of a ledger are runs of which training: by resolved configuration; what differs is never mixed in."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.config import flat, resolve, unflat
from offramp.models import form_of
from offramp.papers.catalog import Protocol, Training, runnable, values_of
from offramp.study import ledger
from offramp.study.ledger import Line
from offramp.train.run_dir import FREE

MACHINE = {*FREE, "seed", "device", "devices", "precision", "memory-format", "compile"}
"""Options in which runs of one training may differ: the seed, and where and how fast they were computed."""
SHORT = {"width", "exits"}
"""Options that `net.width` and `net.exits` say again."""
EXITS = {"branch", "exits-at"}
"""Options that change nothing for a method without exits."""
WITHOUT_EXITS = ("vanilla", "dml")
LARGE = 224
"""Pixels of images whose size is not given."""
LAST = "last epoch on test"


@dataclass
class MeasuredLines:
    """What a ledger has of some trainings.

    Attributes:
        lines: by name of the training and seed.
        version: version of offramp of these lines; None if there are none.
        left_out: number of lines that were not used, by reason.
        cost: seconds of training and the processor or GPU, by name of the training and seed.
    """

    lines: dict[str, dict[int, Line]] = field(default_factory=dict)
    version: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    cost: dict[tuple[str, int], tuple[float, str]] = field(default_factory=dict)

    def seeds(self, training: str) -> list[int]:
        """The seeds that a training has lines of, rising."""
        return sorted(self.lines.get(training, {}))


def identity(values: Mapping[str, Any]) -> str | None:
    """What tells the training of a flat configuration from others, whatever the seed and the machine.

    Returns:
        None if this version cannot read the configuration, or if it names code from elsewhere, which is not imported.
    """
    if any(":" in str(values.get(kind)) for kind in ("net", "branch", "method")):
        return None
    here = {"device": "cpu", "devices": 1, "precision": "32", "seed": 0}
    try:
        resolved = flat(resolve(unflat({**values, **here}, "a line of the ledger")))
    except (ValueError, TypeError):
        return None
    dropped = MACHINE | SHORT | (EXITS if resolved["method"] in WITHOUT_EXITS else set())
    kept = {key: value for key, value in resolved.items() if key not in dropped}
    if resolved["method"] in WITHOUT_EXITS:
        kept = {key: value for key, value in kept.items() if not key.startswith("branch.")}
    if kept.get("net.form") == "auto":  # images without a fixed size: what training chose is in the line
        kept["net.form"] = form_of(kept["image-size"] or LARGE)
    if kept.get("method.fixed"):
        kept["method.fixed"] = Path(kept["method.fixed"]).name
    return json.dumps(kept, sort_keys=True)


def measured(path: Path, trainings: Iterable[Training], protocol: Protocol) -> MeasuredLines:
    """The lines of a ledger that are runs of these trainings in this protocol; the last of several of one seed.

    Lines of another protocol fit no training. Of lines from several versions of offramp, or evaluated on test sets of
    several sizes, only those like the newest line are used: the others are counted as left out.

    Raises:
        ValueError: naming the file and the line, if it is no ledger of runs.
    """
    result = MeasuredLines()
    records = ledger.runs(path) if path.is_file() else []
    wanted = _wanted(trainings, protocol, {_kinds(record["config"]) for _, record in records})
    seen: dict[str, str | None] = {}
    fitting: list[tuple[str, Line, dict[str, Any]]] = []
    for line, record in records:
        text = json.dumps({**record["config"], "seed": 0}, sort_keys=True)
        if text not in seen:
            seen[text] = identity(record["config"])
        names = wanted.get(seen[text] or "", [])
        if not names:
            _count(result, "of other trainings or another protocol")
        elif line.common["evaluated"] != LAST:
            _count(result, f"evaluated otherwise than at the {LAST}")
        else:
            fitting += [(name, line, record) for name in names]
    for name, line, record in fitting:
        kind, newest = kind_of(record), kind_of(fitting[-1][2])
        if kind != newest:
            _count(result, f"of version {kind[0]} on {kind[1]:,} test images, not {newest[0]} on {newest[1]:,}")
            continue
        result.version = kind[0]
        result.lines.setdefault(name, {})[line.seed] = line
        result.cost[name, line.seed] = _cost(record)
    return result


def _wanted(trainings: Iterable[Training], protocol: Protocol, kinds: set[tuple[str, ...]]) -> dict[str, list[str]]:
    """Names of trainings by identity; of those alone whose network and method some line has, for speed."""
    names: dict[str, list[str]] = {}
    for one in trainings:
        values = values_of(one, protocol)
        if runnable(one, protocol) and _kinds(values) in kinds:
            names.setdefault(identity(values) or one.name, []).append(one.name)
    return names


def _kinds(values: Mapping[str, Any]) -> tuple[str, ...]:
    return str(values.get("net")), str(values.get("method"))


def kind_of(record: Mapping[str, Any]) -> tuple[str, int]:
    """Version of offramp that trained the run, without its last part, and the number of test images."""
    training = record.get("training") or {}
    versions = (training.get("provenance") or record.get("provenance") or {}).get("versions") or {}
    return short_version(str(versions.get("offramp", "unknown"))), int(record.get("samples") or 0)


def _cost(record: Mapping[str, Any]) -> tuple[float, str]:
    """Seconds that a run was trained, and on what."""
    training = record.get("training") or {}
    origin = training.get("provenance") or {}
    hardware = origin.get("hardware") or {}
    on_gpu = origin.get("device", record["config"].get("device")) != "cpu"  # the machine may have one all the same
    threads = hardware.get("threads", "?")
    cpu = f"{hardware.get('cpu', 'unknown')}, {threads} thread{'s' * (threads != 1)}"
    return float(training.get("seconds") or 0.0), str((on_gpu and hardware.get("gpu")) or cpu)


def short_version(version: str) -> str:
    """`0.1` of `0.1.3`: versions that differ in the last part alone compute the same."""
    return ".".join(version.split(".")[:2])


def _count(result: MeasuredLines, reason: str) -> None:
    result.left_out[reason] = result.left_out.get(reason, 0) + 1
