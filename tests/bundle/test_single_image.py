"""One image at a time: the same answers from memory that is made once, in every thread."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from offramp.bundle.read import open_bundle
from offramp.early_exit.policy import NEVER
from offramp.early_exit.runtime import answer


def images(exported: Any, count: int) -> list[np.ndarray]:
    rows = exported.data.splits["test"].indices[:count]
    inputs = exported.manifest.preprocessing.normalise(exported.data.splits["test"].source.batch(rows))
    return [inputs[row : row + 1] for row in range(count)]


def test_one_image_is_answered_as_by_arrays_in_every_thread(exported: Any) -> None:
    bundle, inputs = open_bundle(exported.folder), images(exported, 24)
    assert bundle.segments_for(1) is not bundle.segments and bundle.segments_for(2) is bundle.segments
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(bundle.answer, inputs))
    results += [bundle.answer(each) for each in inputs]  # kept, while others are computed in the same memory
    for result, each in zip(results, [*inputs, *inputs], strict=True):
        expected = answer(bundle.segments, bundle.policy, each)
        np.testing.assert_allclose(result.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert (result.exit == expected.exit).all()
        np.testing.assert_allclose(result.score, expected.score, rtol=1e-5)
    assert len({int(result.exit[0]) for result in results}) > 1


def test_the_state_between_two_segments_is_a_copy(exported: Any) -> None:
    bundle, (first, second) = open_bundle(exported.folder), images(exported, 2)
    segments = bundle.segments_for(1)
    assert len(segments) > 2 and segments[0](first, ())[:2] == ((), ())
    expected = bundle.segments[0](first, ())
    state, carry = bundle.single_state(1)
    segments[0](second, ())
    segments[1]((), ())
    for got, wanted in zip((*state, *carry), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    expected = bundle.segments[1](*bundle.segments[0](second, ())[:2])
    for got, wanted in zip(sum(bundle.single_state(2), ()), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_copy_with_other_segments_computes_with_those(exported: Any) -> None:
    bundle, (inputs,) = open_bundle(exported.folder), images(exported, 1)
    bundle.answer(inputs)
    policy = dataclasses.replace(bundle.policy, thresholds=(NEVER,) * 4)

    def constant(state: Any, carry: Any) -> Any:
        return state, carry, np.full((1, 10), 7.0, np.float32)

    other = dataclasses.replace(bundle, segments=(*bundle.segments[:2], constant), policy=policy)
    assert other.segments_for(1) is other.segments and other.answer(inputs).exit == 3
    rest = open_bundle(exported.folder, begin=1)
    assert rest.segments_for(1) is rest.segments


def test_an_image_of_another_shape_is_refused(exported: Any) -> None:
    bundle = open_bundle(exported.folder)
    with pytest.raises(ValueError, match=r"segment-1.onnx failed in ONNX Runtime: it takes an image of \[1, 1, 8, 8\]"):
        bundle.answer(np.zeros((1, 1, 9, 8), np.float32))
