"""Exits chosen by stage."""

import pytest
import torch

from offramp.config import Config, build_method, build_net, resolve


def test_byot_on_a_wide_resnet_has_the_two_early_exits_of_the_tables() -> None:
    config = resolve(Config(net="wrn16-4", branch="byot", method="joint", width=2, exits_at=(2, 3), device="cpu"))
    with torch.device("meta"):
        assert build_net(config, build_method(config), classes=5, shape=(3, 32, 32)).exits == 3


def test_a_stage_that_does_not_exist_is_named() -> None:
    config = resolve(Config(net="wrn16-4", branch="byot", method="joint", width=2, exits_at=(4,), device="cpu"))
    with pytest.raises(ValueError, match="exits_at must name stages from 1 to 3 of this network, got 4") as caught:
        build_net(config, build_method(config), classes=5, shape=(3, 32, 32))
    assert getattr(caught.value, "parameters", ()) == ("exits_at",)
