"""What is left to train: progress is counted in trainings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from offramp.papers.catalog import quick, training
from offramp.papers.plan import planned

NAMES = ("c100.resnet18.sketch.joint", "c100.resnet18.sketch.muse", "c100.resnet18.byot.joint")


def test_progress_ends_at_the_number_of_trainings() -> None:
    advanced: list[int] = []

    @contextmanager
    def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
        assert (text, total) == ("measuring steps", 3)
        yield advanced.append

    plan = planned([training(name) for name in NAMES], {name: [0] for name in NAMES}, [0], quick(), progress)
    assert [(one.training, one.missing, one.hours) for one in plan] == [(name, [], None) for name in NAMES]
    assert advanced == [1, 1, 1]
