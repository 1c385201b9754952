"""Cores that a process may use: its affinity, and the CPU quotas of its control groups, versions 1 and 2."""

import os
from pathlib import Path

import pytest

from offramp import cores
from offramp.bundle import sessions

V2 = ("0::/system.slice/offramp.service\n", "system.slice/offramp.service/cpu.max")
V2_OUTER = ("0::/pod/container\n", "pod/cpu.max")
V2_CONTAINER = ("0::/\n", "cpu.max")
V1_CONTAINER = ("0::/\n3:cpu,cpuacct:/docker/1a2b\n", "cpu/cpu.cfs_quota_us")


@pytest.mark.parametrize(("own", "file"), [V2, V2_OUTER, V2_CONTAINER, V1_CONTAINER])
@pytest.mark.parametrize(("quota", "expected"), [(50_000, 1), (150_000, 2), (900_000, 4), (None, 4)])
def test_a_quota_counts_in_whole_cores(
    own: str, file: str, quota: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / file
    setting.parent.mkdir(parents=True, exist_ok=True)
    if setting.name == "cpu.max":
        setting.write_text(f"{'max' if quota is None else quota} 100000\n")
    else:
        setting.write_text(f"{-1 if quota is None else quota}\n")
        setting.with_name("cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(cores, "GROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cores.cores() == expected
    assert sessions._allowed_cores() == (0 if expected == 4 else expected)  # 0: ONNX Runtime decides


def test_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "OWN", tmp_path / "missing")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.cores() == 1
