"""A run that continues on another kind of device than it was trained on, which its record then says."""

import dataclasses
from pathlib import Path
from typing import Any

from offramp.config import Config, ResolvedConfig, flat
from offramp.lookup import ParameterError


def device_of_run(config: Config, resolved: ResolvedConfig, stored: dict[str, Any]) -> ResolvedConfig:
    """`resolved`, on the device that a finished run was trained on: it is not computed again, wherever it is opened.

    Arguments as in `continued`.
    """
    device: Any = stored.get("device")
    precision: Any = stored.get("precision") if config.precision == "auto" else resolved.precision
    return dataclasses.replace(resolved, device=device, precision=precision)


def continued(config: Config, resolved: ResolvedConfig, stored: dict[str, Any], folder: Path) -> ResolvedConfig:
    """The configuration with which a run continues on this device, whatever it was trained on.

    Args:
        config: as it was given, resolved: the same with the device of this machine.
        stored: the configuration of the run.
    Returns:
        `resolved`, in the precision of the run, if the device has it.
    Raises:
        ParameterError: if the device is another one and was not asked for by name.
    """
    from offramp.train.device import GPU_ONLY

    before, device = stored.get("device"), resolved.device
    precision: Any = stored.get("precision")
    if before == device and config.precision == "auto":  # as it was chosen when the run began
        return dataclasses.replace(resolved, precision=precision)
    if before == device:
        return resolved
    if config.device == "auto":
        raise ParameterError(
            f"{folder} was trained on {before}, and here it would continue on {device}, with other numerical results: "
            f"add device={device} if that is intended",
            "device",
        )
    if config.precision != "auto":
        return resolved
    return dataclasses.replace(resolved, precision=GPU_ONLY.get(precision, precision) if device == "cpu" else precision)


def change(folder: Path, config: ResolvedConfig) -> str:
    """Let the run's configuration name its new device; a note for the user if it is another one.

    What else differs is left as it is, for `run_dir.claimed` to refuse. A precision that only GPUs have may change too.
    """
    import yaml

    from offramp.train.device import GPU_ONLY
    from offramp.train.run_dir import CONFIG, begun, put, read_config

    if not begun(folder):
        return ""
    stored, values = read_config(folder), flat(config)
    before, device = stored.get("device"), values["device"]
    if before == device:
        return ""
    changed = {"device": device}
    if device == "cpu" and stored.get("precision") in GPU_ONLY:
        changed["precision"] = values["precision"]
    put(folder / CONFIG, yaml.safe_dump({**stored, **changed}, sort_keys=False))
    return f"the run was trained on {before}, and continues on {device} in precision {config.precision}"
