"""`offramp` with a pause in every training step, for tests that must act before a training ends."""

import time
from typing import Any

from offramp.cli import main as offramp
from offramp.train.loop import Loop

PAUSE = 0.03
"""Seconds."""


def main(words: list[str]) -> None:
    """Run `offramp WORDS`."""
    step = Loop.step

    def after_a_pause(loop: Loop, *args: Any) -> None:
        time.sleep(PAUSE)
        step(loop, *args)

    Loop.step = after_a_pause  # type: ignore[method-assign]
    offramp(words)
