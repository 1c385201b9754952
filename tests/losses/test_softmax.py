"""The one softmax: confidence and precision."""

import pytest
import torch

from offramp.losses.softmax import confidence, exact, log_probabilities


def test_confidence_is_the_largest_softmax() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(confidence(logits, 2.0), (logits / 2).softmax(-1).amax(-1))


@pytest.mark.parametrize(
    ("input_dtype", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision(input_dtype: torch.dtype, computed: torch.dtype) -> None:
    logits = torch.ones(2, 3, dtype=input_dtype)
    assert exact(logits).dtype == log_probabilities(logits, 3.0).dtype == computed
    assert log_probabilities(logits, torch.tensor(3.0)).dtype == computed
