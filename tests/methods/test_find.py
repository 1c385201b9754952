"""Methods are found by the names of their files."""

import pytest

from offramp.methods import available, find


def test_each_file_is_a_method_with_a_first_line() -> None:
    offered = available()
    names = {"vanilla", "joint", "byot", "dbt", "msd", "muse", "eed", "beed", "dense", "hdkd", "hdbt", "hmsdnet"}
    names |= {"equilibrium", "ofa", "impr"}
    assert names <= set(offered)
    assert all(len(line) > 20 and line.endswith(".") for line in offered.values())
    assert not any(name.startswith("_") for name in offered)


def test_a_misspelt_method_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown method 'muze'; the nearest is 'muse'"):
        find("muze")
