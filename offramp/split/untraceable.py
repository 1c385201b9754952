"""The error about a forward pass that cannot be written as a graph, and where in the model's code it arose."""

import traceback
from pathlib import Path

import jaxtyping
import torch

BY_HAND = "cut elsewhere, or define the stages by hand (offramp.split.by_hand)"


class Untraceable(ValueError):
    """A forward pass that cannot be written as a graph; `path` is the module in which tracing ended ("" the root)."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def where(error: BaseException) -> str:
    """The innermost line of the model's own code: `file.py, line 12: x = x[mask]`."""
    folders = (*(str(Path(file).parent) for file in (torch.__file__, jaxtyping.__file__, __file__)), "<@beartype")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(folders)]
    if not frames:
        return "in its forward"
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: `{frames[-1].line}`"
