"""Ledgers with lines as `offramp evaluate RUN --json` prints them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from offramp.config import Config, flat, resolve
from offramp.papers.catalog import Protocol, config_of, quick, training

Line = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def line() -> Line:
    """A line of a run of this training, or of this configuration, as a ledger would hold it."""

    def built(
        what: str | Config,
        accuracy: Sequence[float],
        seed: int = 0,
        ensemble: float = 0.5,
        version: str = "0.1.0",
        samples: int = 10_000,
        protocol: Protocol | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        config = config_of(training(what), protocol or quick()) if isinstance(what, str) else what
        values: Mapping[str, Any] = {**flat(resolve(config)), "seed": seed, **changes}
        origin = {"versions": {"offramp": version}, "hardware": {"cpu": "a CPU", "threads": 1, "gpu": None}}
        return {
            "config": values,
            "split": "test",
            "weights": "last",
            "samples": samples,
            "accuracy": list(accuracy),
            "top5": [min(1.0, share + 0.2) for share in accuracy],
            "ensemble": ensemble,
            "training": {"seconds": 360.0, "provenance": origin},
            "provenance": origin,
        }

    return built


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[Mapping[str, Any]]], Path]:
    """Writes lines into a ledger."""

    def written(lines: Sequence[Mapping[str, Any]]) -> Path:
        path = tmp_path / "results.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in lines))
        return path

    return written
