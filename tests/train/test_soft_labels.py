"""Soft labels: label smoothing and mixup, and that the same key draws the same blend."""

import pytest
import torch

from offramp.losses.cross_entropy import cross_entropy
from offramp.outputs import Batch
from offramp.train.soft_labels import mixup, smooth

INPUTS = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
BATCH = Batch(INPUTS, torch.tensor([0, 2, 1, 2, 0]), torch.arange(5) + 10)
SOFT = BATCH._replace(labels=torch.tensor([[0.7, 0.2, 0.1]] * 5))


def test_smoothing_spreads_a_share_over_all_classes() -> None:
    result = smooth(BATCH, 3, 0.3)
    assert result.labels[1].tolist() == pytest.approx([0.1, 0.1, 0.8])
    assert torch.equal(result.labels.argmax(1), BATCH.labels)
    torch.testing.assert_close(result.labels.sum(1), torch.ones(5))
    assert result.inputs is BATCH.inputs and result.ids is BATCH.ids
    torch.testing.assert_close(smooth(SOFT, 3, 0.3).labels[0], torch.tensor([0.59, 0.24, 0.17]))
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1))
    ours = torch.nn.functional.cross_entropy(logits[0], BATCH.labels, label_smoothing=0.3)
    torch.testing.assert_close(cross_entropy(logits, result.labels)[0], ours)
    assert torch.equal(smooth(BATCH, 3, 0.0).labels, torch.nn.functional.one_hot(BATCH.labels, 3).float())


def test_mixup_blends_inputs_and_labels_alike() -> None:
    before = INPUTS.clone()
    result = mixup(BATCH, 3, 0.4, (0, 1, 2))
    whole = torch.nn.functional.one_hot(BATCH.labels, 3).float()
    # each sample is weight * itself + (1 - weight) * one other sample, the same one in inputs and labels
    weights, others = set(), []
    for row in range(5):
        fits = []
        for other in range(5):
            both = torch.stack([torch.cat([INPUTS[i].flatten(), whole[i]]) for i in (row, other)])
            mixed = torch.cat([result.inputs[row].flatten(), result.labels[row]])
            change = both[0] - both[1]
            weight = float((mixed - both[1]) @ change / (change @ change)) if other != row else 1.0
            if torch.allclose(weight * both[0] + (1 - weight) * both[1], mixed, atol=1e-5):
                fits.append((other, weight))
        assert len(fits) == 1, "one other sample explains the blend"
        others.append(fits[0][0])
        weights |= {round(fits[0][1], 4)} - ({1.0} if fits[0][0] == row else set())
    assert len(weights) == 1 and sorted(others) == list(range(5))
    torch.testing.assert_close(result.labels.sum(1), torch.ones(5))
    assert torch.equal(INPUTS, before) and result.ids is BATCH.ids


def test_the_same_key_draws_the_same_blend_and_another_another() -> None:
    one, again, other = (mixup(BATCH, 3, 1.0, key) for key in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    assert torch.equal(one.inputs, again.inputs) and torch.equal(one.labels, again.labels)
    assert not torch.equal(one.inputs, other.inputs)


def test_mixup_stays_within_the_parts_that_a_step_takes_by_turns() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    batch = Batch(labels.float()[:, None, None, None], labels, torch.arange(7))
    apart = [mixup(batch, 2, 1.0, (step,), turns=2) for step in range(9)]
    assert all(torch.equal(result.inputs, batch.inputs) for result in apart)
    assert not all(torch.equal(mixup(batch, 2, 1.0, (step,)).inputs, batch.inputs) for step in range(9))
    ids = torch.arange(7.0)[:, None, None, None]
    assert not torch.equal(mixup(batch._replace(inputs=ids), 2, 1.0, (0,), turns=2).inputs, ids)


def test_mixup_takes_soft_labels() -> None:
    result = mixup(SOFT, 3, 1.0, (0,))
    torch.testing.assert_close(result.labels, SOFT.labels)
    assert SOFT.labels[0].tolist() == pytest.approx([0.7, 0.2, 0.1])


def test_blends_follow_the_beta_distribution() -> None:
    label = torch.eye(2)[[0, 1]]
    pair = Batch(torch.zeros(2, 1), label, torch.arange(2))
    drawn = [float(mixup(pair, 2, 0.2, (0, step)).labels[0, 0]) for step in range(400)]
    # Beta(.2, .2) has most of its mass at the ends and mean 1/2; half of the permutations of two change nothing
    assert sum(0.1 < weight < 0.9 for weight in drawn) < 100
    assert sum(weight == 1.0 for weight in drawn) > 150 and min(drawn) < 0.05
