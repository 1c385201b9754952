"""Where the processes of a run meet before the first step: each says that it is ready, or why it ends."""

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from offramp.lookup import with_parameters
from offramp.train.interrupt import Preempted
from offramp.train.launcher import Place, place_of
from offramp.train.liveness import Liveness, connect, keep_alive
from offramp.train.lost import ConnectionLost
from offramp.train.meeting_store import PAUSE, later, opened

COME = 1800.0
"""Seconds in which all processes must have started."""
TELL = 30.0
"""Seconds at the end of a program that failed, in which other processes may still come and hear of it."""


class OtherFailed(Exception):
    """Another process of this run ended before the first step; the message says why."""

    preempted = False


class Meeting:
    """This process among the others of its run, which exchange short messages through the launcher's store.

    The first process (with torchrun, the launcher) keeps the store. Others notice its end by a connection to the store;
    it notices theirs by connections to itself (`liveness`).

    Args:
        place: of this process; None if it is alone, or will start the others itself.
        note: shows a line to the user.
    """

    def __init__(self, place: Place | None, note: Callable[[str], None]) -> None:
        self.place, self.note = place, note
        self.store: PrefixStore | None = None
        self.agreed = False
        self.lock = threading.Lock()

    def join(self, place: Place | None = None, patience: float = COME) -> None:
        """Connect to the store; from now on, the end of this process is noticed.

        Args:
            place: of this process, if it has just started the others.
            patience: seconds in which the first process must have started.
        Raises:
            ConnectionLost: if it has not.
            ValueError: if its address cannot be used, or if another process came as this one.
        """
        self.place = self.place or place
        if self.place is None or self.store is not None:
            return
        self.store = opened(self.place, self.note, time.monotonic() + patience)
        self.connection = socket.create_connection(self.place.address, 30)
        keep_alive(self.connection)
        self.ends = select.poll()
        self.ends.register(self.connection, select.POLLIN)
        if self._add(f"came/{self.place.rank}") > 1:
            raise ValueError(
                f"two processes came to {self.place} as number {self.place.rank}: give every machine its own "
                "NODE_RANK, and every run its own MASTER_PORT"
            )
        if self.place.rank == 0:
            self.liveness = Liveness()
            self._put("port", self.liveness.port)
        else:
            threading.Thread(target=self._stay_connected, args=(self.place,), daemon=True).start()

    def agree(self, state: Mapping[str, Any], check: Callable[[Sequence[Mapping[str, Any]]], None]) -> None:
        """Return once all processes are ready.

        Args:
            state: what this process says of itself, in types of JSON.
            check: raises an error if what all of them say, in their order, does not fit together.
        Raises:
            OtherFailed: if another process ended.
            ConnectionLost: if it was killed, or was not started.
            ValueError: if the processes do not agree on how many they are.
        """
        assert self.place is not None
        here = self.place
        self._put(f"state/{here.rank}", [here.processes, state])
        states = self._gather(here) if here.rank == 0 else self._received()
        self._hear()
        if len(states) != here.processes:
            raise _other_number(here, 0, len(states))
        check(states)
        self.agreed = True
        self.connection.close()
        if here.rank == 0:
            self.liveness.close()

    def tell(self, text: str, *parameters: str, **more: bool) -> None:
        """Say why this process ends: now, if it has joined the others, and again when the program ends."""
        if self.place is None:
            return
        failure = {"process": self.place.rank, "host": socket.gethostname(), "text": text, "parameters": parameters}
        Finalize(None, self._leave, [{**failure, **more}], exitpriority=1)  # unlike atexit, in forked children too
        with suppress(OtherFailed):
            if self.store is not None:
                self._put("failed", {**failure, **more})
                self._hear()

    def _gather(self, here: Place) -> list[dict[str, Any]]:
        """In the first process: the states of all, which it then passes on."""
        states: dict[int, dict[str, Any]] = {}
        end, say = time.monotonic() + COME, later(self.note, 5.0)
        while len(states) < here.processes:
            for rank in {*range(here.processes)} - states.keys():
                if self._has(key := f"state/{rank}"):
                    processes, states[rank] = self._get(key)
                    if processes != here.processes:
                        raise _other_number(here, rank, processes)
            ended = self.liveness.ended()
            self._raise_failure()  # after the line above: a process ends after it has said why
            for rank in ended & {*range(here.processes)}:  # any program can connect to the port
                self._add(f"heard/{rank}")  # nobody waits for it again
                raise ConnectionLost(f"process {rank} of this run ended without a word: see what its machine says")
            if missing := [rank for rank in range(here.processes) if rank not in states]:
                self._wait_for(missing, here, end, say)
        self._put("all", every := [states[rank] for rank in range(here.processes)])
        return every

    def _wait_for(self, ranks: Sequence[int], here: Place, end: float, say: Callable[[str], None]) -> None:
        """In the first process: pause before it looks again for these processes.

        Raises:
            ConnectionLost: if some of them have not started by `end`.
        """
        if absent := [rank for rank in ranks if not self._add(f"came/{rank}", 0)]:
            names = f"process {absent[0]}" if len(absent) == 1 else f"{len(absent)} of {here.processes} processes"
            say(f"waiting for {names} of this run to come to {here}")
            if time.monotonic() > end:
                raise ConnectionLost(
                    f"{names} of this run did not come to {here}: start the command on every machine, with this "
                    "MASTER_ADDR and MASTER_PORT"
                )
        time.sleep(PAUSE)

    def _received(self) -> list[dict[str, Any]]:
        """In the other processes: the states of all, once the first one has them."""
        while not self._has("all"):
            self._raise_failure()
            time.sleep(PAUSE)
        every: list[dict[str, Any]] = self._get("all")
        return every

    def _raise_failure(self) -> None:
        """Leave if another process has failed; a first process that has nothing to do is no failure."""
        if not self._has("failed"):
            return
        self._hear()
        failure = self._get("failed")
        who = f"process {failure['process']} on {failure['host']}"
        if failure["process"] == 0 and failure.get("finished"):
            self.note(f"{who}: {failure['text']}")
            raise SystemExit(0)
        error = OtherFailed(f"{who} ended: {failure['text']}")
        error.preempted = failure.get("preempted", False)
        raise with_parameters(error, *failure["parameters"])

    def _hear(self) -> None:
        assert self.place is not None
        self._add(f"heard/{self.place.rank}")

    def _leave(self, failure: Mapping[str, Any]) -> None:
        """At the end of a program that failed: wait a little for processes that have not heard it yet."""
        assert self.place is not None
        end, say = time.monotonic() + TELL, later(self.note, 2.0)
        with suppress(OtherFailed, ConnectionLost, ValueError, OSError, KeyboardInterrupt):
            if self.store is None:
                self.join(patience=TELL)
                self._put("failed", failure)
                self._hear()
            while self.place.keeps_store and time.monotonic() < end:
                if all(self._add(f"heard/{rank}", 0) for rank in self.place.beside):
                    return
                say(f"waiting up to {TELL:.0f} s until the other processes have heard of it (Ctrl-C: end now)")
                time.sleep(PAUSE)

    def _stay_connected(self, here: Place) -> None:
        """In a process other than the first one: be connected to it until all have agreed."""
        with suppress(OtherFailed, OSError):
            while not self._has("port"):
                time.sleep(PAUSE)
            with connect(here.host, self._get("port"), here.rank):
                while not self.agreed:
                    time.sleep(PAUSE)

    def _has(self, key: str) -> bool:
        return bool(self._ask("check", [key]))

    def _get(self, key: str) -> Any:
        return json.loads(self._ask("get", key))

    def _put(self, key: str, value: Any) -> None:
        self._ask("compare_set", key, "", json.dumps(value))  # what came first stays

    def _add(self, key: str, number: int = 1) -> int:
        return int(self._ask("add", key, number))

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Call the store, unless who keeps it has ended: PyTorch would print the calls in which it notices that.

        The call is made in a thread of its own: if the other machine is lost, it does not return for many minutes.
        """
        answers: list[Any] = []

        def call() -> None:
            with suppress(RuntimeError):
                answers.append(getattr(self.store, method)(*arguments))

        with self.lock:
            if not self.ends.poll(0):
                calling = threading.Thread(target=call, daemon=True)
                calling.start()
                calling.join(PAUSE)
                while calling.is_alive() and not self.ends.poll(0):
                    calling.join(PAUSE)
        if answers:
            return answers[0]
        raise OtherFailed("the first process of this run ended: see what it said, then start all of them again")


def _other_number(here: Place, rank: int, processes: int) -> ValueError:
    message = (
        f"process {rank} was started as one of {processes}, process {here.rank} as one of {here.processes}: start all "
        "with the same nodes and devices"
    )
    return with_parameters(ValueError(message), "nodes", "devices")


@contextmanager
def telling(here: Meeting) -> Iterator[None]:
    """In this context, the other processes hear why this one ends, whatever the reason is, until all have agreed.

    If another one has ended, the first process of a machine says so; those after it end with status 0, since launchers
    kill the first one as soon as another one fails.
    """
    try:
        yield
    except OtherFailed as error:
        here.tell(str(error))  # who keeps the store stays until all have heard it
        if here.place is not None and here.place.local_rank:
            raise SystemExit(0) from None
        if error.preempted:
            raise Preempted(str(error)) from None
        raise
    except SystemExit:
        raise
    except BaseException as error:
        preempted = isinstance(error, KeyboardInterrupt)
        if not here.agreed and not (preempted and here.store is None):  # else nobody waits for this process yet
            text = str(error) or type(error).__name__
            here.tell(text, *getattr(error, "parameters", ()), preempted=preempted)
        raise


@contextmanager
def meeting(devices: int, nodes: int, note: Callable[[str], None]) -> Iterator[Meeting]:
    """A `Meeting` of the processes of a run, `telling` what ends this one; also that it has nothing to do.

    Args:
        devices: processes on each machine.
        nodes: machines.
        note: shows a line to the user.
    """
    here = Meeting(place_of(devices, nodes), note)
    with telling(here):
        yield here
        if not here.agreed:
            here.tell(
                "the run is finished there; if not here, choose an out that all machines share", "out", finished=True
            )
