"""A bundle with a damaged file: one line that names the file, or the answers that it gave before."""

import hashlib
import importlib.util
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.bundle import partial_state
from offramp.bundle.manifest import _BLANK
from offramp.bundle.predict import check_batch
from offramp.bundle.read import open_bundle
from offramp.early_exit.runtime import Stepper

spec = importlib.util.spec_from_file_location("mutations", Path(__file__).parents[1] / "mutations.py")
assert spec is not None and spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)

INPUTS = np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32)


def answers(folder: Path) -> Any:
    opened = open_bundle(folder)
    check_batch(opened, 3)
    answer = opened.answer(INPUTS)
    return [answer.logits, answer.exit]


def handed_over(folder: Path) -> Any:
    loaded = partial_state.load(folder / "state.npz", open_bundle(folder, begin=1, end=2))
    return [np.array(loaded.names), *(loaded.arrays[name] for name in sorted(loaded.arrays))]


def same(answer: Any, right: Any) -> bool:
    return len(answer) == len(right) and all(np.array_equal(a, b) for a, b in zip(answer, right, strict=True))


def anything(answer: Any, right: Any) -> bool:
    """Somebody who signs a manifest may say what they like: it must not fail otherwise."""
    return True


@pytest.fixture
def folder(copied: Path) -> Path:
    """A bundle with a state file beside it."""
    opened = open_bundle(copied)
    stepper = Stepper(opened.policy, INPUTS)
    stepper.advance(opened.segments[0])
    names = ["a.png", "b.png", "c.png"]
    state = partial_state.gather(opened.manifest, opened.policy, [(stepper, names)], 1)
    partial_state.save(state, copied / "state.npz", opened.manifest)
    return copied


def signed(values: dict[str, Any]) -> bytes:
    text = json.dumps({**values, "digest": _BLANK}, indent=2) + "\n"
    return text.replace(_BLANK, hashlib.sha256(text.encode()).hexdigest()).encode()


def run_mutations(folder: Path, count: int, seed: int) -> Counter[str]:
    """Damage files in turn, every third time with a manifest that is signed again: how often each outcome was."""
    counts: Counter[str] = Counter()
    generator = random.Random(seed)
    names = ["manifest.json", "policy.json", "segment-1.onnx", "segment-2.onnx", "state.npz"]
    right = {name: (handed_over if name == "state.npz" else answers)(folder) for name in names}
    for number in range(count):
        name = names[number // 2 % len(names)] if number % 2 else "manifest.json"
        file, read, equal = folder / name, handed_over if name == "state.npz" else answers, same
        content = file.read_bytes()
        if number % 2:
            said, damaged = mutations.damage(content, name, generator)
        else:
            values = json.loads(content)
            said, equal = mutations.change_field(values, generator), anything
            damaged = signed(values)
        file.unlink() if damaged is None else file.write_bytes(damaged)
        try:
            counts[mutations.outcome(lambda: read(folder), right[name], file, equal)] += 1  # noqa: B023
        except AssertionError as error:
            raise AssertionError(f"{name}, mutation {number}: {said}: {error}") from error
        file.write_bytes(content)
    return counts


def test_a_damaged_bundle_is_refused_or_answers_as_before(folder: Path) -> None:
    counts = run_mutations(folder, 140, seed=0)
    assert sum(counts.values()) == 140 and counts["refused"] > 70


@pytest.mark.full
def test_a_thousand_more(folder: Path) -> None:
    counts = run_mutations(folder, 1000, seed=1)
    print(counts)
    assert sum(counts.values()) == 1000
