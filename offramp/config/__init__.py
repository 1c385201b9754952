"""What a run is made of, as plain values, and how names become objects."""

from offramp.config.config import (
    Config,
    Layers,
    build_backbone,
    build_data,
    build_method,
    build_net,
    check_key,
    flat,
    keys,
    load_weights,
    of_kind,
    prepare,
    read_yaml,
    resolve,
    unflat,
)

__all__ = [
    "Config",
    "Layers",
    "build_backbone",
    "build_data",
    "build_method",
    "build_net",
    "check_key",
    "flat",
    "keys",
    "load_weights",
    "of_kind",
    "prepare",
    "read_yaml",
    "resolve",
    "unflat",
]
