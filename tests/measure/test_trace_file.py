"""Stored traces: the same numbers, mapped from the file, and only for what they were computed from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from offramp.digests import of_file
from offramp.measure.trace_file import Damaged, load, store
from offramp.outputs import Batch, ExitOutputs

N = 11
LABELS, IDS = torch.arange(N) % 5, torch.arange(N) + 100
LOGITS = torch.randn(2, N, 5, generator=torch.Generator().manual_seed(0))
ABOUT = {"weights": "abc", "precision": "32"}


def net(inputs: torch.Tensor) -> ExitOutputs:
    return ExitOutputs(LOGITS[:, inputs], (), ())


def batches(size: int) -> Iterator[Batch]:
    for rows in torch.arange(N).split(size):
        yield Batch(rows, LABELS[rows], IDS[rows])


@pytest.mark.parametrize("size", [1, 4, N])
def test_what_is_read_is_what_was_computed(tmp_path: Path, size: int) -> None:
    told: list[int] = []
    path = tmp_path / "traces" / "cal.safetensors"
    built = store(path, net, batches(size), N, "cal", ABOUT, told.append)
    read = load(path, ABOUT)
    assert read is not None and sum(told) == N
    for result in (built, read):
        assert torch.equal(result.logits, LOGITS) and result.split == "cal"
        assert result.labels is not None and torch.equal(result.labels, LABELS) and torch.equal(result.ids, IDS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert torch.equal(load_file(path)["logits"], LOGITS)  # anybody's safetensors reads it


def test_the_file_is_mapped_and_cannot_be_changed_through_it(tmp_path: Path) -> None:
    path = tmp_path / "cal.safetensors"
    result = store(path, net, batches(4), N, "cal", ABOUT)
    before = of_file(path)
    result.logits.zero_()
    assert of_file(path) == before
    again = load(path, ABOUT)
    assert again is not None and torch.equal(again.logits, LOGITS)
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(path) in mapped.read_text()


def test_other_weights_or_precision_make_it_worthless(tmp_path: Path) -> None:
    path = tmp_path / "cal.safetensors"
    store(path, net, batches(4), N, "cal", ABOUT)
    assert load(path, {**ABOUT, "weights": "abd"}) is None
    assert load(path, {**ABOUT, "more": 1}) is None
    assert load(tmp_path / "none.safetensors", ABOUT) is None


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_damaged_file_is_no_trace(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cal.safetensors"
    store(path, net, batches(4), N, "cal", ABOUT)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Damaged, match=r"cal\.safetensors"):
        load(path, ABOUT)


@pytest.mark.parametrize("name", ["logits", "labels", "ids"])
def test_a_changed_value_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cal.safetensors"
    store(path, net, batches(4), N, "cal", ABOUT)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name].roll(1, -1)}, path, said)
    with pytest.raises(Damaged, match=r"cal\.safetensors was changed since it was written"):
        load(path, ABOUT)


def test_logits_that_are_not_finite_are_refused_and_leave_no_trace(tmp_path: Path) -> None:
    def broken(inputs: torch.Tensor) -> ExitOutputs:
        return ExitOutputs(torch.where(inputs[None, :, None] == 3, torch.nan, LOGITS[:, inputs]), (), ())

    with pytest.raises(ValueError, match=r"10 values are not finite \(NaN or infinite\) in the logits of cal"):
        store(tmp_path / "cal.safetensors", broken, batches(4), N, "cal", ABOUT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("said", "message"), [(N + 1, "should have 12 samples, but has 11"), (9, "but has more")])
def test_a_wrong_number_of_samples_leaves_no_trace(tmp_path: Path, said: int, message: str) -> None:
    path = tmp_path / "cal.safetensors"
    with pytest.raises(ValueError, match=message):
        store(path, net, batches(4), said, "cal", ABOUT)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_where_it_is_stopped(tmp_path: Path) -> None:
    def stopped(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "cal.safetensors", net, batches(4), N, "cal", ABOUT, stopped)
    assert not list(tmp_path.iterdir())


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the split 'cal' has no samples to trace"):
        store(tmp_path / "cal.safetensors", net, [], 0, "cal", ABOUT)
