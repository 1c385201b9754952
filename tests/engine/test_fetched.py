"""Files of a run that come back from a node: whenever the receiver is killed, the run can be resumed."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from offramp.engine.fetched import Receiver, pack, unpack
from offramp.train import checkpoint
from offramp.train.run_dir import begun

CHANGES = {"open", "write", "rename", "replace", "mkdir", "unlink", "rmdir", "rmtree"}
"""Functions in C before which the receiver is killed."""


def run_of(folder: Path, steps: tuple[int, ...], result: bool = False) -> Mapping[str, bytes]:
    """The files of a run with these checkpoints, each at a record of four bytes a step."""
    folder.mkdir()
    (folder / "config.yaml").write_text("net: small\n")
    (folder / "metrics.jsonl").write_bytes(b"rec\n" * (steps[-1] + 1))
    for step in steps:
        checkpoint.save(folder / "checkpoints", step, {"w": torch.tensor([float(step)])}, {"metrics_offset": 4 * step})
    if result:
        (folder / "last.safetensors").write_bytes(b"weights")
        (folder / "traces").mkdir()
        (folder / "traces/test.safetensors").write_bytes(b"trace")
        (folder / "result.json").write_text("{}")
    return pack(folder)


def killed_before(change: int, work: Callable[[], Any]) -> bool:
    """Do the work in a forked process that ends before its nth change of a file; whether it ended so."""
    child = os.fork()
    if not child:
        changes = iter(range(change))

        def look(frame: FrameType, event: str, called: Any) -> None:
            if event == "c_call" and called.__name__ in CHANGES and next(changes, None) is None:
                os._exit(9)

        sys.setprofile(look)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_kill_at_any_moment_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    before = run_of(tmp_path / "before", (10, 20))
    after = run_of(tmp_path / "after", (30, 40), result=True)
    change, out, receiver = 0, tmp_path / "out", Receiver(lambda: None)
    unpack(out, before)
    while killed_before(change, lambda: receiver.put_run(str(out), after)):
        newest, refused = checkpoint.latest(out / "checkpoints")
        assert begun(out) and (out / "config.yaml").is_file()
        assert newest is not None and not refused and newest.path.name[-2:] in ("20", "30", "40"), change
        assert newest.state["metrics_offset"] <= (out / "metrics.jsonl").stat().st_size, "no record is missing"
        assert not (out / "result.json").exists() or pack(out) == after, "a result is there with all its files"
        receiver.put_run(str(out), before)
        assert pack(out) == before
        change += 1
    assert change > 30 and pack(out) == after
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000000030", "step-000000040"]


def test_what_is_being_written_stays_on_the_node(tmp_path: Path) -> None:
    files = run_of(tmp_path / "run", (10,))
    (tmp_path / "run/checkpoints/.part-step-000000020").mkdir()
    (tmp_path / "run/checkpoints/.part-step-000000020/state.pt").write_bytes(b"half")
    (tmp_path / "run/.lock").write_bytes(b"pid")
    assert pack(tmp_path / "run") == files
