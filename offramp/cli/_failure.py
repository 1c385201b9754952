"""Where exceptions become one line: what went wrong, and the exit status."""

import json
import os
import re
import sys
import traceback
from pathlib import Path

from offramp.cli._errors import as_typed
from offramp.lookup import ParameterError
from offramp.python_names import failing_line
from offramp.text import one_line
from offramp.trust import NotTrusted

_ALLOCATOR = re.compile("can't allocate memory|Failed to allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)
DEBUG = "OFFRAMP_DEBUG"
"""Set this variable to see tracebacks."""
_DEVICE = re.compile(
    "^(CUDA|cuDNN|CUBLAS|NCCL)[ _]|does not have a deterministic implementation|^Deterministic behavior was enabled",
    re.IGNORECASE,
)
_TRAINS = "take a smaller --batch-size, --accumulate 2 or more, --precision bf16 or a smaller network"
LESS_MEMORY = {
    **dict.fromkeys(("train", "compare", "sweep"), _TRAINS),
    **dict.fromkeys(("calibrate", "evaluate", "analyse", "report"), "take a smaller --batch-size or --device cpu"),
    "bench": "take a smaller --batch",
    "predict": "take a smaller --batch-size",
    "serve": "take a smaller --max-batch",
}
"""What to change of a command for which a GPU has too little memory; the others evaluate in batches of fixed sizes."""
NO_GPU = {"predict": "--runtime onnx", "serve": "--runtime onnx"}
"""The option that selects the CPU, for commands without `--device`."""
GPU_ADVICE = (
    ("device-side assert", f"an index lay outside its tensor; CUDA_LAUNCH_BLOCKING=1 with {DEBUG}=1 shows where"),
    ("no kernel image", "this build of PyTorch has no code for this GPU: install another, or take {cpu}"),
    ("driver version", "the driver is older than this build of PyTorch needs: update it, or take {cpu}"),
    ("deterministic|CUBLAS_WORKSPACE", "leave out --deterministic, or set CUBLAS_WORKSPACE_CONFIG=:4096:8"),
    (
        "",
        f"`nvidia-smi` shows its state, CUDA_LAUNCH_BLOCKING=1 with {DEBUG}=1 the line that failed",
    ),
)
"""What to do about an error of a GPU, by what it says; the first pattern that is found counts. `cpu`: see `NO_GPU`."""


def fail(words: list[str], message: str, status: int) -> int:
    """Print what went wrong as one line, with `--json` as an object too; with OFFRAMP_DEBUG set, where as well.

    Returns:
        The exit status.
    """
    if os.environ.get(DEBUG):
        traceback.print_exc()
    line = one_line(message)
    if "--json" in words:
        print(json.dumps({"error": line}))
    print(f"offramp: {line}", file=sys.stderr)
    return status


LAUNCHED = {"LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"}
"""Variables of which processes that train together have one."""


def tell_processes(words: list[str], message: str) -> None:
    """Let the other processes of a training run hear that its command was not understood here."""
    if words[:1] != ["train"] or not LAUNCHED & os.environ.keys():
        return
    from offramp.cli._argv import value_of
    from offramp.cli._console import ConsoleReporter
    from offramp.train.launcher import place_of
    from offramp.train.meeting import Meeting

    nodes = value_of(words, "nodes") or ""
    place = place_of(1, int(nodes) if nodes.isascii() and nodes.isdecimal() else 1)
    Meeting(place, ConsoleReporter(True).note).tell(one_line(message))


def explain(error: Exception, verb: str = "") -> tuple[str, int]:
    """(what went wrong, the exit status): 2 if a word of the command was not understood, else 1.

    Args:
        verb: the command that failed, whose options are named.

    Errors of the user's files and machine are shown as they are. Unexpected ones, mistakes of offramp or of a library,
    are shown with their type and the line that raised them; errors in code from outside with the line there.
    """
    if isinstance(error, ParameterError):
        return as_typed(error), 2
    if isinstance(error, OSError) and error.strerror:
        named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        return named + error.strerror, 1
    if _out_of_memory(error):
        sentence = one_line(str(error), 300)
        if _DEVICE.search(sentence):
            change = LESS_MEMORY.get(verb, f"take {_on_cpu(verb)}")
            return f"the GPU has not enough memory: {sentence}; {change}, or end other programs there (`nvidia-smi`)", 1
        return f"there is not enough memory{f': {sentence}' if sentence else ''}", 1
    if sentence := _of_gpu(error, verb):
        return sentence, 1
    if isinstance(error, NotTrusted):
        return f"{as_typed(error)}, or add --trust to this command", 1
    if _expected(error):
        return as_typed(error), getattr(error, "status", 1)
    line = failing_line(error)
    if line:
        return f"{type(error).__name__}: {one_line(str(error), 300)} ({line}; {DEBUG}=1 shows the calls)", 1
    return (
        f"unexpected {type(error).__name__}: {one_line(str(error), 300)} (raised at {_place(error)}; {DEBUG}=1 shows "
        "the calls; please report it)",
        1,
    )


def _on_cpu(verb: str) -> str:
    return NO_GPU.get(verb, "--device cpu")


def _of_gpu(error: Exception, verb: str) -> str:
    """What a failure of the GPU means and what to do; nothing if the error is not one of the device.

    The device reports it late, so that the line which raised it is not the line that failed.
    """
    message = one_line(str(error).partition("\n")[0], 200)
    if not isinstance(error, RuntimeError) or not _DEVICE.search(message):
        return ""
    advice = next(text for pattern, text in GPU_ADVICE if re.search(pattern, message, re.IGNORECASE))
    return f"the GPU failed: {message}; {advice.format(cpu=_on_cpu(verb))}"


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, that of PyTorch's allocator for CPUs or GPUs, or of ONNX Runtime."""
    named = isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "_ArrayMemoryError")
    return named or (isinstance(error, RuntimeError) and bool(_ALLOCATOR.search(str(error))))


def _expected(error: Exception) -> bool:
    """Whether this is an error of the user's input or machine rather than of the code."""
    # Raised by us, with the command that installs.
    missing_extra = isinstance(error, ImportError) and error.name is None
    ours = type(error).__module__.startswith("offramp.")
    return missing_extra or ours or (isinstance(error, ValueError | OSError) and bool(str(error)))


def _place(error: Exception) -> str:
    """The deepest line of ours that the error passed, or where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parents[1])
    ours = [frame for frame in frames if frame.filename.startswith(package)]
    frame = (ours or frames)[-1] if frames else None
    return f"{Path(frame.filename).name}:{frame.lineno}" if frame else "an unknown place"
