"""What is available, from Python."""

from typing import Any

import jaxtyping
import pytest

import offramp
from offramp.lookup import ParameterError


def test_a_method_is_described() -> None:
    assert "muse" in offramp.available("method") and "sketch" in offramp.available("branch")
    muse = offramp.describe("method", "muse")
    assert muse.name == "muse" and muse.about == offramp.available("method")["muse"] and muse.family
    assert muse.parameters["alpha"].type == "float" and muse.parameters["alpha"].default == 0.5
    assert muse.parameters["alpha"].about and "alpha" not in muse.summary.split("Args:")[1:]
    assert muse.data_sets["ImageNet"] == {"alpha": ".1", "temperature": "20"}


def test_data_take_the_parameters_of_load() -> None:
    assert "per_class_includes_holdout" in offramp.describe("data", "digits").parameters
    assert offramp.describe("data", "digits").family is None


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(ParameterError, match="unknown net 'resnet81'; the nearest is 'resnet18'"):
        offramp.describe("net", "resnet81")


def test_a_kind_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # else the type is refused before
    kind: Any = "methods"
    with pytest.raises(ParameterError, match="kind must be 'net', 'branch', 'method' or 'data', got 'methods'"):
        offramp.available(kind)
    with pytest.raises(ParameterError, match="kind must be 'net', 'branch', 'method' or 'data', got 'methods'"):
        offramp.describe(kind, "muse")
