"""Everything that offramp expects of a method, an exit structure, a network and a data source."""

import pytest
from offramp_example import neighbour, pointwise, stack

from offramp import data
from offramp.testing import check_backbone, check_branch, check_method


def test_method() -> None:
    check_method(neighbour.build)
    check_method(neighbour.build, temperature=1.0)


def test_exit_structure() -> None:
    check_branch(pointwise.build)


def test_networks() -> None:
    for name in stack.NETS:
        check_backbone(lambda name=name: stack.build(name, classes=5, width=4))


def test_data() -> None:
    stripes = data.load("stripes", noise=10)
    assert stripes.shape == (1, 8, 8) and len(stripes.splits["test"]) == 100
    with pytest.raises(ValueError, match="stripes are generated"):
        data.load("stripes:elsewhere")
