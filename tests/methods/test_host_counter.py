"""Steps counted on the host as well: the same answers after a checkpoint, and in a copy."""

import copy

import torch
from torch import nn

from offramp.methods._host_counter import HostCounter


def module() -> nn.Module:
    built = nn.Module()
    built.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    built.counter = HostCounter("steps")
    return built


def test_every_third_step_whatever_is_loaded_or_copied() -> None:
    counting = module()
    assert [counting.counter.due(counting, 3) for _ in range(5)] == [True, False, False, True, False]
    saved = counting.state_dict()
    assert int(saved["steps"]) == 5
    resumed = module()
    assert resumed.counter.due(resumed, 3)
    resumed.load_state_dict(saved)
    assert [resumed.counter.due(resumed, 3) for _ in range(2)] == [False, True]
    twin = copy.deepcopy(counting)
    assert [twin.counter.due(twin, 3) for _ in range(2)] == [False, True] and int(counting.steps) == 5


def test_every_step_is_counted_without_reading_the_buffer() -> None:
    counting = module()
    assert all(counting.counter.due(counting, 1) for _ in range(4)) and int(counting.steps) == 4
