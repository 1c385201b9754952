"""Segments put together are the network with fewer exits, down to the plain one."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from offramp.bundle.merge_onnx import fuse
from offramp.bundle.sessions import open_segment
from offramp.net import segments

ROWS = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)


def read(exported: Any) -> list[bytes]:
    return [(exported.folder / part.file).read_bytes() for part in exported.manifest.parts]


@torch.no_grad()
def test_all_segments_make_the_plain_network(exported: Any) -> None:
    model, part = fuse(read(exported), exported.manifest.parts)
    assert (part.exit, part.gives_state, part.gives_carry) == (3, (), ())
    state, carry, logits = open_segment(model, part)(ROWS, ())
    (plain,) = segments(exported.net, (False, False, False, True))
    np.testing.assert_allclose(logits, plain(torch.from_numpy(ROWS), ())[2], atol=1e-4)
    assert (state, carry) == ((), ())


def test_the_first_two_hand_on_what_the_third_takes(exported: Any) -> None:
    models, parts = read(exported), exported.manifest.parts
    model, part = fuse(models[:2], parts[:2])
    assert [(port.shape, port.dtype) for port in part.gives_state + part.gives_carry] == [
        (port.shape, port.dtype) for port in parts[2].takes_state + parts[2].takes_carry
    ]
    wanted: list[Any] = []
    values: Any = (ROWS, ())
    for data, each in zip(models, parts, strict=True):
        *values, logits = open_segment(data, each)(*values)
        wanted.append(logits)
    *values, logits = open_segment(model, part)(ROWS, ())
    np.testing.assert_allclose(logits, wanted[1], atol=1e-4)
    np.testing.assert_allclose(open_segment(models[2], parts[2])(*values)[2], wanted[2], atol=1e-4)


def test_what_only_an_exit_needs_is_gone(exported: Any, make_network: Any) -> None:
    models, parts = read(exported), exported.manifest.parts
    # the exits of this network hand their logits on, so only their own last operations can go
    count = [len(onnx.load_model_from_string(model).graph.node) for model in models]
    fused = onnx.load_model_from_string(fuse(models, parts)[0])
    assert len(fused.graph.node) < sum(count)
    assert [port.name for port in fused.graph.output] == ["logits"]


def test_one_segment_stays_what_it_is(exported: Any) -> None:
    models, parts = read(exported), exported.manifest.parts
    model, part = fuse(models[:1], parts[:1])
    assert part == parts[0] and onnx.load_model_from_string(model) == onnx.load_model_from_string(models[0])


@pytest.mark.parametrize("count", [0, 2])
def test_there_must_be_a_part_for_every_model(exported: Any, count: int) -> None:
    with pytest.raises(ValueError, match=f"as many models as specs, and at least one: got {count} and {count and 1}"):
        fuse([b""] * count, exported.manifest.parts[: count and 1])
