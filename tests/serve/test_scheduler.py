"""The scheduler on a simulated clock: which segment runs on whom, exactly; nobody starves, deadlines are kept."""

import importlib.util
import math
import random
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.serve.costs import CostCurve, linear, powers
from offramp.serve.sample_queue import PATIENCE
from offramp.serve.scheduler import Decision, QueueFull, Scheduler, Work

GPU = (linear(1.0, 0.01, 8), linear(1.0, 0.01, 8))  # seconds: one call costs as much as 100 samples
CPU = (linear(0.001, 1.0, 8), linear(0.001, 1.0, 8))  # a call costs nothing beside a sample


def payloads(samples: list[Any]) -> list[Any]:
    return [sample.payload for sample in samples]


def proceed(scheduler: Scheduler, work: Work, staying: Iterable[int], now: float) -> tuple[list[Any], Decision]:
    """What a driver does after a segment: the samples that exit, and what it is to do at once."""
    rest = [work.samples[index] for index in staying]
    leaving = [sample for sample in work.samples if sample not in rest]
    segment, deadline = work.segment + 1, min((s.deadline for s in rest if s.deadline is not None), default=math.inf)
    if rest and scheduler.continues(segment, len(rest), deadline, now):
        assert scheduler.finish(Work(work.segment, leaving), ()) == leaving
        return leaving, Decision(scheduler.late_before(segment, len(rest), now), Work(segment, rest))
    assert sorted(map(id, scheduler.finish(work, staying))) == sorted(map(id, leaving))
    return leaving, Decision([], None)


def ran(scheduler: Scheduler, now: float) -> tuple[int, list[Any]] | None:
    """The next batch, which all of its samples survive if they can."""
    work = scheduler.next(now).work
    if work is None:
        return None
    last = work.segment == len(scheduler.costs) - 1
    scheduler.finish(work, () if last else range(len(work.samples)))
    return work.segment, payloads(work.samples)


def test_cost_curves() -> None:
    curve = CostCurve((1, 4), (1.0, 2.5))
    assert [curve(size) for size in (1, 2, 4, 8)] == [1.0, 1.5, 2.5, 5.0]
    assert powers(1) == (1,) and powers(8) == (1, 2, 4, 8) and powers(9) == (1, 2, 4, 8, 9)
    assert linear(1.0, 0.01, 64).useful(64) == 64 and linear(0.001, 1.0, 64).useful(64) == 1
    assert linear(1.0, 0.01, 64).useful(16) == 16
    dearer = curve.plus(0.5)
    assert [dearer(size) for size in (1, 2, 4, 8)] == [1.5, 2.0, 3.0, 5.5] and dearer.plus(0.5)(8) == 6.0
    flat = CostCurve((1, 2, 4), (1.0, 2.0, 4.0))  # larger batches were not measured, because they bring nothing
    assert flat.useful(32) == 1 and flat.plus(1.0).useful(32) == 8  # 9/8 is within 10 % of 33/32
    for sizes, seconds in (((2,), (1.0,)), ((1, 1), (1.0, 1.0)), ((1,), (0.0,)), ((), ()), ((1, 2), (1.0,))):
        with pytest.raises(ValueError, match="a cost curve needs"):
            CostCurve(sizes, seconds)


def test_survivors_gather_where_large_batches_pay() -> None:
    scheduler = Scheduler(GPU, most=8)
    scheduler.submit("abcd", 0.0)
    first = scheduler.next(0.0).work
    assert first is not None and (first.segment, payloads(first.samples)) == (0, list("abcd"))
    assert payloads(scheduler.finish(first, [3])) == list("abc")  # d continues
    scheduler.submit("efgh", 0.5)
    assert ran(scheduler, 1.04) == (0, list("efgh"))  # four new ones rather than one survivor, though it is older
    assert scheduler.waiting == [0, 5]
    segment, batch = ran(scheduler, 2.08) or (0, [])
    assert (segment, sorted(batch)) == (1, list("defgh"))  # the survivors of both, in one batch
    assert scheduler.next(3.0).work is None and scheduler.unanswered == 0


def test_survivors_run_at_once_where_batches_gain_nothing() -> None:
    scheduler = Scheduler(CPU, most=8)
    for name in "ab":
        scheduler.submit([name], 0.0)
    assert scheduler.useful == (1, 1)
    assert ran(scheduler, 0.0) == (0, ["a"])
    scheduler.submit("c", 0.5)
    assert ran(scheduler, 1.0) == (1, ["a"])  # older than all others
    assert ran(scheduler, 2.0) == (0, ["b"]) and ran(scheduler, 3.0) == (1, ["b"])


def test_an_overhead_of_each_batch_makes_larger_ones_useful() -> None:
    scheduler = Scheduler(CPU, overhead=0.4, most=8)  # of 1.4 seconds alone, 1.1 each of four, 1.05 of eight
    assert scheduler.useful == (4, 4) and scheduler.costs == CPU
    scheduler.submit("abcde", 0.0)
    assert ran(scheduler, 0.0) == (0, list("abcd"))
    assert scheduler.waiting == [1, 4]
    assert scheduler.retry_after() == pytest.approx((1 * 2 + 4 * 1 + 2) * 4.401 / 4)


class TestContinuing:
    """What becomes of the rest of a batch."""

    @staticmethod
    def first(scheduler: Scheduler, now: float = 0.0) -> Work:
        work = scheduler.next(now).work
        assert work is not None and work.segment == 0
        return work

    def test_it_continues_at_once_where_batches_gain_nothing(self) -> None:
        scheduler = Scheduler(CPU, overhead=0.4, most=8)
        scheduler.submit("abcde", 0.0)
        leaving, decision = proceed(scheduler, self.first(scheduler), [0, 2], 4.2)
        assert payloads(leaving) == ["b", "d"] and decision.work is not None and not decision.late
        assert (decision.work.segment, payloads(decision.work.samples)) == (1, ["a", "c"])
        assert scheduler.waiting == [1, 0] and scheduler.unanswered == 3
        leaving, decision = proceed(scheduler, decision.work, [], 6.2)
        assert payloads(leaving) == ["a", "c"] and decision.work is None and scheduler.unanswered == 1

    @pytest.mark.parametrize(("others", "at_once"), [("i", True), ("ij", True), ("ijk", False), ("ijkl", False)])
    def test_it_waits_if_that_saves_others_more_than_it_delays(self, others: str, at_once: bool) -> None:
        """Two of eight continue, in 1.02 s instead of 0.27 s; a batch of two or three others takes 1.02 or 1.03 s."""
        scheduler = Scheduler(GPU, most=8)
        scheduler.submit("abcdefgh" + others, 0.0)
        leaving, decision = proceed(scheduler, self.first(scheduler), [1, 4], 1.08)
        assert len(leaving) == 6 and not decision.late
        if at_once:
            assert decision.work is not None and payloads(decision.work.samples) == ["b", "e"]
        else:
            assert decision.work is None and scheduler.waiting == [len(others), 2]

    def test_it_does_not_wait_if_nobody_else_does(self) -> None:
        scheduler = Scheduler(GPU, most=8)
        scheduler.submit("abcdefgh", 0.0)
        leaving, decision = proceed(scheduler, self.first(scheduler), [1, 4], 1.08)
        assert len(leaving) == 6 and decision.work is not None and payloads(decision.work.samples) == ["b", "e"]

    @pytest.mark.parametrize(("fixed", "at_once"), [(2.5e-4, True), (5e-4, False)])
    def test_it_does_not_wait_for_less_than_a_batch_costs(self, fixed: float, at_once: bool) -> None:
        curve = linear(fixed, 1e-5, 8)  # a larger batch would save 0.2 or 0.4 ms; a new one costs 0.3
        scheduler = Scheduler((curve, curve), overhead=1e-3, most=8)
        scheduler.submit(range(40), 0.0)
        assert (proceed(scheduler, self.first(scheduler), [0], 9.0)[1].work is not None) is at_once

    def test_it_continues_as_a_full_batch_everywhere(self) -> None:
        scheduler = Scheduler(GPU, most=8)
        scheduler.submit("abcdefghi", 0.0)
        assert proceed(scheduler, self.first(scheduler), range(8), 1.08)[1].work is not None

    def test_it_joins_others_that_wait(self) -> None:
        scheduler = Scheduler(CPU, most=8)
        scheduler.submit("a", 0.0)
        scheduler.finish(self.first(scheduler), [0])
        scheduler.submit("b", -9.0)
        decision = proceed(scheduler, self.first(scheduler), [0], 1.0)[1]
        assert decision.work is None and scheduler.waiting == [0, 2]

    def test_one_that_would_be_late_waits_to_be_answered(self) -> None:
        scheduler = Scheduler(CPU, most=8)
        scheduler.submit("a", 0.0, deadline=2.0)
        assert proceed(scheduler, self.first(scheduler), [0], 1.1)[1].work is None
        assert payloads(scheduler.next(1.1).late) == ["a"]

    def test_others_that_it_would_make_late_are_answered_first(self) -> None:
        scheduler = Scheduler((CPU[0],) * 3, most=8)
        scheduler.submit("a", 0.0, deadline=3.5)
        work = self.first(scheduler)
        scheduler.finish(Work(1, work.samples), [0])  # a waits for the third segment
        scheduler.submit("b", -9.0)
        decision = proceed(scheduler, self.first(scheduler), [0], 2.0)[1]  # until 3.001, after which a is late
        assert payloads(decision.late) == ["a"] and decision.work is not None and decision.work.segment == 1

    def test_new_ones_come_first_if_their_deadline_hangs_on_it(self) -> None:
        scheduler = Scheduler(CPU, most=1)
        scheduler.submit("a", 0.0)
        work = self.first(scheduler)
        scheduler.submit("b", 0.5, deadline=2.5)
        assert proceed(scheduler, work, [0], 1.0)[1].work is None
        assert ran(scheduler, 1.0) == (0, ["b"])


def test_nobody_waits_for_ever() -> None:
    """A survivor beside an endless stream of full batches: its pressure grows until it runs."""
    scheduler = Scheduler(GPU, most=8)
    scheduler.submit(["old"], 0.0)
    work = scheduler.next(0.0).work
    assert work is not None
    scheduler.finish(work, [0])
    now, rounds = 1.01, 0
    while True:
        scheduler.submit(range(8), now - 1)  # they have always waited for one second
        work = scheduler.next(now).work
        assert work is not None
        if work.segment == 1:
            break
        scheduler.finish(work, [])
        now, rounds = now + 1.08, rounds + 1
    # efficiency 1/8 of a full batch (1.08/8 per sample against 1.01): it runs once it is 7.48 times as old as they are
    assert payloads(work.samples) == ["old"] and rounds == 6


def test_a_large_request_does_not_hold_up_small_ones() -> None:
    scheduler = Scheduler(CPU, most=4)  # 2.002 seconds a sample on its way through both segments
    scheduler.submit([f"large {n}" for n in range(100)], 0.0)
    scheduler.submit(["small"], 3.0)
    order = []
    for _ in range(4):
        work = scheduler.next(4.0).work
        assert work is not None
        order += payloads(scheduler.finish(work, []))
    assert order == ["large 0", "large 1", "small", "large 2"]


def test_equal_ones_come_in_their_order() -> None:
    scheduler = Scheduler(GPU, most=4)
    for name in "abcdef":
        scheduler.submit([name], 1.0)
    assert ran(scheduler, 1.0) == (0, list("abcd"))


def test_the_first_due_comes_first() -> None:
    scheduler = Scheduler(CPU, most=1)
    scheduler.submit(["patient"], 0.0)
    scheduler.submit(["urgent"], 0.1, deadline=0.9)
    scheduler.submit(["relaxed"], 0.0, deadline=50.0)
    assert ran(scheduler, 0.2) == (0, ["urgent"]) and PATIENCE == 1.0


class TestDeadlines:
    def test_an_answer_leaves_when_no_further_segment_can_end_in_time(self) -> None:
        scheduler = Scheduler(GPU, most=8)
        scheduler.submit("ab", 0.0, deadline=2.0)
        scheduler.submit("c", 0.0)
        work = scheduler.next(0.0).work
        assert work is not None and len(work.samples) == 3
        scheduler.finish(work, [0, 1, 2])
        decision = scheduler.next(1.03)  # the second segment would end at 2.04
        assert payloads(decision.late) == ["a", "b"] and [s.passed for s in decision.late] == [1, 1]
        assert decision.work is not None and payloads(decision.work.samples) == ["c"]
        assert scheduler.unanswered == 1

    def test_it_leaves_before_a_batch_after_which_it_would_be_late(self) -> None:
        scheduler = Scheduler(GPU, most=8)
        scheduler.submit(["a"], 0.0, deadline=3.0)
        first = scheduler.next(0.0).work
        assert first is not None
        scheduler.finish(first, [0])
        scheduler.submit(range(8), 0.0)
        decision = scheduler.next(1.01)  # eight that waited as long: their batch ends at 2.09, and a would end at 3.1
        assert decision.work is not None and (decision.work.segment, len(decision.work.samples)) == (0, 8)
        assert payloads(decision.late) == ["a"]

    def test_what_has_no_answer_runs_in_any_case(self) -> None:
        scheduler = Scheduler(GPU, most=8)
        scheduler.submit(["late"], 0.0, deadline=0.1)
        decision = scheduler.next(5.0)
        assert not decision.late and decision.work is not None and payloads(decision.work.samples) == ["late"]
        scheduler.finish(decision.work, [0])
        decision = scheduler.next(6.01)
        assert payloads(decision.late) == ["late"] and decision.work is None

    def test_the_first_segment_comes_first_if_a_deadline_hangs_on_it(self) -> None:
        scheduler = Scheduler(GPU, most=8)
        scheduler.submit(range(8), 0.0)
        assert ran(scheduler, 0.0) is not None  # eight survivors
        scheduler.submit(["soon"], 1.0, deadline=3.0)
        assert ran(scheduler, 1.2) == (0, ["soon"])  # after the survivors' 1.08 s it would end at 3.29
        scheduler.submit(["hopeless"], 2.2, deadline=2.9)
        assert ran(scheduler, 2.3) is not None and scheduler.waiting[0] == 1  # its first exit ends too late anyway

    def test_with_several_workers_it_leaves_when_its_own_segment_cannot_end_in_time(self) -> None:
        scheduler = Scheduler(GPU, most=8, workers=2)
        scheduler.submit(["a"], 0.0, deadline=2.0)
        first = scheduler.next(0.0).work
        assert first is not None
        scheduler.finish(first, [0])
        scheduler.submit(range(8), 0.0)
        decision = scheduler.next(1.01)
        assert payloads(decision.late) == ["a"] and decision.work is not None and decision.work.segment == 0

    def test_with_several_workers_another_may_still_run_it(self) -> None:
        scheduler = Scheduler(GPU, most=8, workers=2)
        scheduler.submit(["a"], 0.0, deadline=3.0)
        first = scheduler.next(0.0).work
        assert first is not None
        scheduler.finish(first, [0])
        scheduler.submit(range(8), 0.0)
        assert scheduler.next(1.01).late == [] and scheduler.next(1.01).work is not None


def test_a_full_queue_refuses_a_request_as_a_whole() -> None:
    scheduler = Scheduler(CPU, most=1, capacity=4)
    scheduler.submit("abc", 0.0)
    with pytest.raises(QueueFull, match="the queue is full: 3 of at most 4 samples wait") as refused:
        scheduler.submit("de", 0.0)
    assert refused.value.retry_after == pytest.approx(4 * 2.002) and scheduler.waiting == [3, 0]
    scheduler.submit("d", 0.0)
    assert ran(scheduler, 0.0) == (0, ["a"])
    with pytest.raises(QueueFull):  # a survivor still counts
        scheduler.submit("e", 0.0)
    assert sorted(sample.payload for sample in scheduler.clear()) == ["a", "b", "c", "d"]
    assert (scheduler.unanswered, scheduler.waiting) == (0, [0, 0])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3))
def test_everyone_is_answered_once_and_no_batch_is_too_large(seed: int, segments: int, most: int, workers: int) -> None:
    """Random requests, costs, deadlines and several workers: a sample runs its segments in order and leaves once."""
    rng = random.Random(seed)
    costs = [linear(rng.uniform(0, 1) + 1e-3, rng.uniform(0, 0.2) + 1e-3, most) for _ in range(segments)]
    scheduler = Scheduler(costs, most=most, capacity=10**6, workers=workers)
    now, number, answers = 0.0, 0, dict[int, int]()
    running: list[tuple[float, Any]] = []
    sent = rng.randint(1, 60)

    def run(decision: Decision) -> None:
        for sample in decision.late:
            assert sample.deadline is not None and sample.passed and sample.payload not in answers
            answers[sample.payload] = sample.passed
        if decision.work is not None:
            segment, samples = decision.work
            assert 0 < len(samples) <= most
            running.append((now + costs[segment](len(samples)), decision.work))

    while len(answers) < sent:
        if number < sent and rng.random() < 0.5:
            size = min(sent - number, rng.randint(1, 12))
            deadline = now + rng.uniform(0, 5) if rng.random() < 0.4 else None
            scheduler.submit(range(number, number + size), now, deadline)
            number += size
        if len(running) < workers:
            run(scheduler.next(now))
        now += rng.uniform(0, 1)
        for ends, work in [pair for pair in running if pair[0] <= now]:
            running.remove((ends, work))
            last = work.segment == segments - 1
            staying = [] if last else [n for n in range(len(work.samples)) if rng.random() < 0.5]
            leaving, decision = proceed(scheduler, work, staying, now)
            for sample in leaving:
                assert sample.payload not in answers
                answers[sample.payload] = work.segment + 1
            run(decision)
    assert not any(scheduler.waiting) and scheduler.unanswered == sum(len(work.samples) for _, work in running)
    assert sorted(answers) == list(range(sent))


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "serve_simulation.py"
    spec = importlib.util.spec_from_file_location("serve_simulation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rebatching_on_a_gpu_and_on_a_cpu(simulation: ModuleType) -> None:
    """Loads that whole batches of no size keep up with on a GPU; on a CPU, new batches are as fast as the best ones."""

    def p99(setting: Any, rate: float, seconds: float) -> tuple[float, float]:
        load = simulation.load(rate, setting.shares, seconds)
        whole = [simulation.whole_batches(load, setting, size) for size in powers(setting.most)]
        percentile = simulation.percentile
        return percentile(simulation.rebatched(load, setting), 0.99), min(percentile(each, 0.99) for each in whole)

    gpu, *_, slow = (each for each in simulation.SETTINGS if each.name.startswith(("GPU", "EfficientNet")))
    fast, other = p99(gpu, 15000, 0.3)
    assert fast < 0.05 < other
    for setting, rate in ((simulation.SETTINGS[3], 600), (slow, 70)):
        fast, other = p99(setting, rate, 900 / rate)
        assert fast <= 1.15 * other  # that of the batch size which is best at this very rate
