"""The example of a training loop of one's own runs, and learns."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_training_loop.py"


def test_the_example_learns() -> None:
    spec = importlib.util.spec_from_file_location("own_training_loop", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    losses = module.main("joint", epochs=2, images=256)
    assert len(losses) == 8 and losses[-1] < losses[0]
