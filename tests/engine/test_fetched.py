"""Files of a run that come back from a node: whenever the receiver is killed, the run can be resumed."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from offramp.engine.fetched import Receiver, pack, unpack
from offramp.train import checkpoint
from offramp.train.run_dir import begun

CHANGES = {"open", "write", "rename", "replace", "mkdir", "unlink", "rmdir", "rmtree"}
"""Functions in C that change files."""


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


def moments(folder: Path, work: Callable[[], Any]) -> Iterator[Path]:
    """The folder as a kill would leave it before each change of a file, as copies: those that differ from one another.

    What a process has written, but not flushed, is in neither.
    """
    trees = [_tree(folder)]

    def look(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in CHANGES and (tree := _tree(folder)) != trees[-1]:
            trees.append(tree)

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    for number, tree in enumerate(trees):
        copy = folder.with_name(f"{folder.name}-{number}")
        for path, content in tree.items():
            place = copy / path
            if content is None:
                place.mkdir(parents=True)
            else:
                place.write_bytes(content)
        yield copy


def _tree(folder: Path) -> dict[Path, bytes | None]:
    """Everything in a folder, hidden files too: the contents of files, None for folders."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in paths}


def test_a_kill_at_any_moment_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    before = run_of(tmp_path / "before", (10, 20))
    after = run_of(tmp_path / "after", (30, 40), result=True)
    killed, out, receiver = 0, tmp_path / "out", Receiver(lambda: None)
    unpack(out, before)
    for left in moments(out, lambda: Receiver(lambda: None).put_run(str(out), after)):
        newest, refused = checkpoint.latest(left / "checkpoints")
        assert begun(left) and (left / "config.yaml").is_file()
        assert newest is not None and not refused and newest.path.name[-2:] in ("20", "30", "40"), killed
        assert newest.state["metrics_offset"] <= (left / "metrics.jsonl").stat().st_size, "no record is missing"
        assert not (left / "result.json").exists() or pack(left) == after, "a result is there with all its files"
        receiver.put_run(str(left), before)
        assert pack(left) == before
        killed += 1
    assert killed > 20 and pack(out) == after
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000000030", "step-000000040"]


def test_what_is_being_written_stays_on_the_node(tmp_path: Path) -> None:
    files = run_of(tmp_path / "run", (10,))
    (tmp_path / "run/checkpoints/.part-step-000000020").mkdir()
    (tmp_path / "run/checkpoints/.part-step-000000020/state.pt").write_bytes(b"half")
    (tmp_path / "run/.lock").write_bytes(b"pid")
    assert pack(tmp_path / "run") == files
