"""A run that continues on another kind of device than it was trained on, which its record then says."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.config import Config, ResolvedConfig, flat
from offramp.config.files import LATER, OF_DEVICE
from offramp.lookup import ParameterError
from offramp.text import quantity

KEYS = ("device", *OF_DEVICE)
"""The device and its settings in a run's config.yaml."""


def device_of_run(config: Config, resolved: ResolvedConfig, stored: Mapping[str, Any]) -> ResolvedConfig:
    """`resolved`, on the device that a finished run was trained on: it is not computed again, wherever it is opened.

    Arguments as in `continued`.
    """
    device: Any = stored.get("device")
    return dataclasses.replace(_as_begun(config, resolved, stored), device=device)


def continued(config: Config, resolved: ResolvedConfig, stored: Mapping[str, Any], folder: Path) -> ResolvedConfig:
    """The configuration with which a run continues on this device, whatever it was trained on.

    Args:
        config: as it was given, resolved: the same with the device of this machine.
        stored: the configuration of the run.
    Returns:
        `resolved`; on the kind of device of before, what `config` leaves open is as it was chosen when the run began.
    Raises:
        ParameterError: if the device is another one and was not asked for by name.
    """
    before, device = stored.get("device"), resolved.device
    if before == device:
        return _as_begun(config, resolved, stored)
    if config.device == "auto":
        raise ParameterError(
            f"{folder} was trained on {before}, and here it would continue on {device}, with other numerical results: "
            f"add device={device} if that is intended",
            "device",
        )
    return resolved


def _as_begun(config: Config, resolved: ResolvedConfig, stored: Mapping[str, Any]) -> ResolvedConfig:
    values, names = {**LATER, **stored}, {key: key.replace("-", "_") for key in OF_DEVICE}
    chosen: Any = {name: values.get(key) for key, name in names.items() if getattr(config, name) == OF_DEVICE[key]}
    return dataclasses.replace(resolved, **chosen)


def on_device_of(values: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration with the device and its settings of another one, if they are of different kinds."""
    if values.get("device") == other.get("device"):
        return dict(values)
    kept = {key: value for key, value in values.items() if key not in KEYS}
    return kept | {key: other[key] for key in KEYS if key in other}


def change(folder: Path, config: ResolvedConfig) -> str:
    """Let the run's configuration name its new device and settings; a note for the user if it is another one.

    What else differs is left as it is, for `run_dir.claimed` to refuse.
    """
    import yaml

    from offramp.train.run_dir import CONFIG, begun, put, read_config

    if not begun(folder):
        return ""
    stored = read_config(folder)
    changed = on_device_of(stored, flat(config))
    if changed == stored:
        return ""
    put(folder / CONFIG, yaml.safe_dump(changed, sort_keys=False))
    return (
        f"the run was trained on {_described(stored)}, and continues on {_described(changed)}: settings that are not "
        "given are chosen for the new device"
    )


def _described(values: Mapping[str, Any]) -> str:
    """The device and how it computes, in words."""
    settings = [f"precision {values.get('precision')}"]
    if values.get("memory-format", "auto") != "auto":
        settings.append(values["memory-format"])
    if values.get("threads"):
        settings.append(quantity(values["threads"], "thread"))
    return f"{values.get('device')} ({', '.join(settings)})"
