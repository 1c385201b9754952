"""What Ctrl-C and a scheduler's signals do while a network trains."""

import os
import signal
import threading

import pytest

from offramp.train.interrupt import PREEMPTING, Preempted, end_of, preemptible, stopping_on_interrupt


@pytest.mark.parametrize("number", PREEMPTING)
def test_a_scheduler_s_signal_asks_to_save_however_often_it_comes(number: int) -> None:
    stop, said = threading.Event(), list[str]()
    before = signal.getsignal(number)
    with stopping_on_interrupt(stop, said.append, "after this step") as signals:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.is_set() and said == [f"{signal.Signals(number).name}: saving after this step"]
    assert signal.getsignal(number) == before
    end = end_of(signals, "saved")
    assert isinstance(end, Preempted) and end.status == 75 and str(end) == "saved"


@pytest.mark.parametrize("number", PREEMPTING)
def test_outside_of_training_it_ends_the_program_with_the_same_status(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Preempted, match=f"{signal.Signals(number).name}: ended before or after") as end, preemptible():
        os.kill(os.getpid(), number)
    assert end.value.status == 75 and signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    said = list[str]()
    with stopping_on_interrupt(threading.Event(), said.append, "soon") as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert said == ["Ctrl-C: saving soon (again: stop at once)"]
    assert not isinstance(end_of([*signals, signal.SIGTERM], ""), Preempted) and not isinstance(
        end_of([], ""), Preempted
    )
