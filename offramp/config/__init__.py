"""What a run is made of, as plain values, and how names become objects."""

from offramp.config.build import (
    build_backbone,
    build_data,
    build_method,
    build_net,
    load_weights,
    of_kind,
    prepare_objective,
)
from offramp.config.complete import Completed, complete, keep_choices
from offramp.config.config import Config
from offramp.config.files import check_key, flat, keys, read_yaml, unflat
from offramp.config.resolve import ResolvedConfig, resolve

__all__ = [
    "Completed",
    "Config",
    "ResolvedConfig",
    "build_backbone",
    "build_data",
    "build_method",
    "build_net",
    "check_key",
    "complete",
    "flat",
    "keep_choices",
    "keys",
    "load_weights",
    "of_kind",
    "prepare_objective",
    "read_yaml",
    "resolve",
    "unflat",
]
