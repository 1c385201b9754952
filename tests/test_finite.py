"""The one rule for numbers that are not finite."""

import json

import numpy as np
import pytest
import torch

from offramp import finite


def test_the_first_tensor_with_such_a_value_is_named() -> None:
    good = [("a", torch.ones(3)), ("ids", torch.arange(3)), ("c", np.ones(2, np.float32))]
    finite.check(good, "file")
    for bad in (torch.tensor([1.0, torch.inf]), torch.tensor([1, torch.nan], dtype=torch.bfloat16), np.array([np.nan])):
        with pytest.raises(ValueError, match=r"^file: 1 value is not finite \(NaN or infinite\) in layer\.bad$"):
            finite.check([*good, ("layer.bad", bad), ("more", bad)], "file")


def test_json_has_null_instead() -> None:
    text = finite.dumps({"a": [1.5, float("nan")], "b": {"c": (float("inf"), None)}, "d": "NaN"})
    assert json.loads(text) == {"a": [1.5, None], "b": {"c": [None, None]}, "d": "NaN"}
