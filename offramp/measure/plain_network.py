"""What the word `plain` means in an output that has no baseline. Runs without torch."""

from collections.abc import Sequence

from offramp.measure.units import percent


def plain_note(accuracy: Sequence[float], split: str = "test") -> str:
    """What `plain` is if no baseline is given, and which early exit is more accurate than it; at most 80 columns.

    Args:
        accuracy: of every exit on the split, in [0, 1].
    """
    note = "plain = final exit of this network"
    best = max(range(len(accuracy)), key=lambda exit: accuracy[exit])
    if accuracy[best] <= accuracy[-1]:
        return note
    return (
        f"{note}; exit {best + 1} is more accurate than it on {split}\n({percent(accuracy[best])} % against "
        f"{percent(accuracy[-1])} %): compare with the network trained alone (baseline)"
    )
