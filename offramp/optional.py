"""Imports torchvision, timm and transformers when they are needed, beside a CPU build of torch too."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_kept: list[torch.library.Library] = []
"""Libraries of operators live as long as something holds them."""


def vision(package: str) -> ModuleType:
    """Import `torchvision`, `timm` or `transformers` (or a module of theirs).

    Published torchvision wheels are built for CUDA; beside a CPU build of torch their compiled library does not load,
    and the import ends with "operator torchvision::nms does not exist". Where that is so, the two operators that the
    import looks up are declared first (they cannot be run then); a healthy installation keeps its own.

    Raises:
        ValueError: with the command that installs it, if the package is not there.
    """
    _declare_missing_operators()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        top = package.partition(".")[0]
        missing = (error.name or "").partition(".")[0]
        if missing not in (top, "torchvision", "timm"):
            raise
        extra = "transformers" if top == "transformers" else "vision"
        raise ValueError(f"this needs the package {missing}: pip install 'offramp[{extra}]'") from None


def _declare_missing_operators() -> None:
    try:
        spec = importlib.util.find_spec("torchvision")
    except ValueError:
        return  # half imported, or switched off: the import itself raises
    if _kept or spec is None or spec.origin is None or _loads(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _kept.append(library)


def _loads(folder: Path) -> bool:
    """Whether torchvision's compiled library fits this torch."""
    for library in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return True
