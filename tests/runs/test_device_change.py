"""A run continues on another kind of device only where that is asked for, in its own precision if there is one."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from offramp.config import Config, resolve
from offramp.runs.device_change import change, continued, device_of_run
from offramp.train.run_dir import read_config

CPU = Config(device="cpu", precision="auto")


@pytest.mark.parametrize(
    ("stored", "precision"), [("bf16", "bf16"), ("32", "32"), ("tf32", "32"), ("16", "32")]
)  # of a GPU
def test_the_precision_of_the_run_where_a_cpu_has_it(stored: str, precision: str) -> None:
    here = continued(CPU, resolve(CPU), {"device": "cuda", "precision": stored}, Path("run"))
    assert (here.device, here.precision) == ("cpu", precision)


def test_nobody_asked() -> None:
    resolved = dataclasses.replace(resolve(CPU), device="cpu")
    says = "it would continue on cpu, with other numerical results: add device=cpu if that is intended"
    with pytest.raises(ValueError, match=re.escape(says)):
        continued(
            dataclasses.replace(CPU, device="auto"), resolved, {"device": "cuda", "precision": "bf16"}, Path("run")
        )


def test_a_finished_run_is_opened_anywhere() -> None:
    stored = {"device": "cuda", "precision": "bf16"}
    assert device_of_run(CPU, resolve(CPU), stored).device == "cuda"
    other = dataclasses.replace(CPU, precision="32")
    assert device_of_run(other, resolve(other), stored).precision == "32"  # which is refused as another run


@pytest.mark.parametrize(("precision", "kept"), [("bf16", "bf16"), ("16", "32")])
def test_the_configuration_names_the_new_device(tmp_path: Path, precision: str, kept: str) -> None:
    (tmp_path / "config.yaml").write_text(f"device: cuda\nprecision: '{precision}'\nlr: 0.3\n")
    config: Any = dataclasses.replace(resolve(CPU), precision=kept)
    assert change(tmp_path, config) == ""  # nothing was trained yet
    (tmp_path / "metrics.jsonl").touch()
    assert change(tmp_path, config) == f"the run was trained on cuda, and continues on cpu in precision {kept}"
    assert read_config(tmp_path) == {"device": "cpu", "precision": kept, "lr": 0.3}
    assert change(tmp_path, config) == ""
