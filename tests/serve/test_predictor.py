"""AsyncPredictor: every image answered once, as `predict` answers it, whatever batches it passes through."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import offramp
from offramp.bundle.gpu_sessions import DeviceArray, bind_session, concatenate
from offramp.bundle.read import Bundle, open_bundle
from offramp.cli import main
from offramp.early_exit.policy import ExitPolicy
from offramp.serve import rows
from offramp.serve.costs import CostCurve, linear
from offramp.serve.engine import SegmentEngine
from offramp.serve.measure import measure
from offramp.serve.predictor import AsyncPredictor, check_inputs
from offramp.serve.requests import Failed, Request, SampleResult, Ticket
from offramp.serve.rows import SampleRow, SegmentInput, gather
from offramp.serve.running import RunningBatch
from offramp.serve.sample_queue import Sample
from offramp.serve.scheduler import QueueFull, Scheduler, Work

Costs = tuple[CostCurve, ...]


def submit_each(engine: SegmentEngine, inputs: np.ndarray, keys: Iterable[Any], *more: Any) -> None:
    """One request per sample, all of which are there when the engine's thread looks."""
    with engine._changed:
        for key, row in zip(keys, inputs, strict=True):
            engine.submit(row[None], key, *more)


class Calls:
    """A sink for results: what every call handed over."""

    def __init__(self, wanted: int) -> None:
        self.each, self.wanted, self._done = list[list[Any]](), wanted, threading.Event()

    def __call__(self, results: Any) -> None:
        self.each.append(list(results))
        if sum(self.sizes) == self.wanted:
            self._done.set()

    @property
    def sizes(self) -> list[int]:
        """Number of requests of every call."""
        return [len(call) for call in self.each]

    @property
    def results(self) -> dict[Any, list[Any]]:
        """Results of every request, by its key; none came twice."""
        pairs = [pair for call in self.each for pair in call]
        results = dict(pairs)
        assert len(results) == len(pairs)
        return results

    def wait(self) -> None:
        """Until the results of all requests are there."""
        assert self._done.wait(20)


def assert_same(outcome: SampleResult, bundle: Bundle, inputs: np.ndarray) -> None:
    """An outcome is that of the bundle for this input alone, unless its score lies at a threshold."""
    alone = bundle.answer(inputs[None])
    scale = max(1.0, float(np.abs(alone.logits).max()))
    if outcome.exit != alone.exit[0]:
        first = min(outcome.exit, int(alone.exit[0]))
        assert bundle.policy.score == "patience" or abs(alone.score[0] - bundle.policy.thresholds[first]) < 1e-4
        return
    assert np.abs(outcome.logits - alone.logits[0]).max() <= 1e-5 * scale
    assert abs(outcome.score - alone.score[0]) <= 1e-5 and not outcome.late


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"answer": "arithmetic", "temperatures": (1.0, 0.8, 0.5), "thresholds": (0.4, 0.5, 0.5)},
        {"score": "patience", "patience": 2},
        {"score": "entropy", "answer": "geometric"},
        {"score": "margin", "answer": "sum"},
    ],
    ids=str,
)
def test_as_predict_answers(folder: Path, pixels: np.ndarray, costs: Costs, policy: dict[str, Any]) -> None:
    bundle = open_bundle(folder)
    values = {"thresholds": (0.6, 0.7, 0.5), "enabled": (True,) * 3, **policy}
    bundle = replace(bundle, policy=ExitPolicy(**values))
    inputs = bundle.manifest.preprocessing.normalise(pixels[:80])

    async def ask() -> list[Any]:
        async with AsyncPredictor(bundle, costs=costs, max_batch=16) as predictor:
            cuts = [0, 1, 2, 9, 10, 40, 41, 80]
            requests = [predictor.infer(inputs[begin:end]) for begin, end in pairwise(cuts)]
            return [outcome for result in await asyncio.gather(*requests) for outcome in result]

    outcomes = asyncio.run(ask())
    assert len({outcome.exit for outcome in outcomes}) > 1
    for outcome, row in zip(outcomes, inputs, strict=True):
        assert_same(outcome, bundle, row)


def test_states_of_different_requests_are_joined_on_the_device(
    folder: Path, pixels: np.ndarray, costs: Costs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `onnx-cuda`, on the CPU as the device: no state is copied to the host."""
    onnxruntime = pytest.importorskip("onnxruntime")
    plain = open_bundle(folder)
    sessions = [onnxruntime.InferenceSession(folder / part.file) for part in plain.manifest.parts]
    parts = zip(sessions, plain.manifest.parts, strict=True)
    bundle = replace(plain, segments=tuple(bind_session(*pair, torch.device("cpu")) for pair in parts))
    monkeypatch.delattr(DeviceArray, "__array__")
    joined: list[int] = []
    monkeypatch.setattr(rows, "concatenate", lambda arrays: joined.append(len(arrays)) or concatenate(arrays))
    inputs = bundle.manifest.preprocessing.normalise(pixels[:40])

    async def ask() -> list[Any]:
        async with AsyncPredictor(bundle, costs=costs, max_batch=16) as predictor:
            requests = [predictor.infer(inputs[begin:end]) for begin, end in pairwise([0, 9, 10, 31, 40])]
            return [outcome for result in await asyncio.gather(*requests) for outcome in result]

    outcomes = asyncio.run(ask())
    assert joined and len({outcome.exit for outcome in outcomes}) > 1
    for outcome, row in zip(outcomes, inputs, strict=True):
        assert_same(outcome, plain, row)


def test_serving_on_a_gpu_that_is_not_there_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(folder), "--port", "0", "--runtime", "onnx-cuda"])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert "--runtime onnx-cuda is not in this ONNX Runtime, which has no CUDAExecutionProvider: pip install" in said


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_every_request_is_answered_once(bundle: Bundle, pixels: np.ndarray, costs: Costs, seed: int) -> None:
    """Random requests in random order from random moments; each gets its own answers."""
    rng = random.Random(seed)
    inputs = bundle.manifest.preprocessing.normalise(pixels)

    async def ask() -> int:
        answered = 0

        async def one(predictor: AsyncPredictor) -> None:
            nonlocal answered
            rows = [rng.randrange(len(inputs)) for _ in range(rng.randint(1, 7))]
            await asyncio.sleep(rng.uniform(0, 0.01))
            outcomes = await predictor.infer(inputs[rows])
            for row, outcome in zip(rows, outcomes, strict=True):
                assert isinstance(outcome, SampleResult)
                assert_same(outcome, bundle, inputs[row])
                answered += 1

        async with AsyncPredictor(bundle, costs=costs, max_batch=rng.randint(1, 16)) as predictor:
            await asyncio.gather(*(one(predictor) for _ in range(20)))
        assert sum(predictor.engine.statistics.answered) == answered
        return answered

    assert asyncio.run(ask())


def test_one_image_one_prediction(folder: Path, images: list[bytes], costs: Costs, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(images[0])
    (tmp_path / "b.txt").write_text("no image")

    async def ask() -> list[Any]:
        async with offramp.AsyncPredictor(folder, costs=costs) as predictor:
            files = [tmp_path / "a.png", str(tmp_path / "b.txt"), images[0], tmp_path / "none.png"]
            return await asyncio.gather(*(predictor.predict(file) for file in files))

    right, bad, again, missing = asyncio.run(ask())
    wanted = next(iter(offramp.load_bundle(folder).predict([tmp_path / "a.png"])))
    assert (right.image, right.label, right.exit) == (wanted.image, wanted.label, wanted.exit)
    assert right.probability == pytest.approx(wanted.probability, abs=1e-5) and right.ms > 0 and not right.at_deadline
    assert again == replace(right, image="", ms=again.ms)
    assert bad.label is None and "image" in bad.error and missing.error == "there is no such file"


def test_what_is_no_image_and_no_input(folder: Path, images: list[bytes], costs: Costs, pixels: np.ndarray) -> None:
    """They are refused where they are sent: joined with the inputs of others, they would fail these, or change."""

    async def ask() -> Any:
        async with offramp.AsyncPredictor(folder, costs=costs) as predictor:
            with pytest.raises(ValueError, match="image must be a path or an instance of bytes, got 5"):
                await predictor.predict(5)  # type: ignore[arg-type]
            with pytest.raises(
                ValueError, match=r"float32 of the shape \[N, 1, 8, 8\], got float32 of the shape \[1, 3"
            ):
                await predictor.infer(np.zeros((1, 3, 8, 8), np.float32))
            assert (await predictor.predict(images[0])).error is None
        for file in (images[0], bytes(100_000)):  # the second would be decoded in a thread
            with pytest.raises(RuntimeError, match="is stopped"):
                await predictor.predict(file)

    asyncio.run(ask())
    for inputs, got in ((pixels[:2], r"uint8 of the shape \[2, 1, 8, 8\]"), ([[0.0]], "list")):
        with pytest.raises(ValueError, match=f"must be an array of float32 of the shape .*, got {got}"):
            check_inputs(inputs, (1, 8, 8))


def slow(bundle: Bundle, number: int, ready: threading.Event, seen: list[int]) -> Bundle:
    """A bundle whose segment waits for an event."""
    inner = bundle.segments[number]

    def segment(state: Any, carry: Any) -> Any:
        seen.append(len(state[0]) if isinstance(state, tuple) else len(state))
        assert ready.wait(10)
        return inner(state, carry)

    return replace(bundle, segments=(*bundle.segments[:number], segment, *bundle.segments[number + 1 :]))


def never(bundle: Bundle) -> Bundle:
    """A bundle whose policy lets no sample exit early."""
    return replace(bundle, policy=ExitPolicy(thresholds=(1e8,) * 3, enabled=(True,) * 3))


def test_answers_leave_as_soon_as_their_exit_lets_them(bundle: Bundle, pixels: np.ndarray) -> None:
    """While the second segment is held up, samples that exited at the first are answered already."""
    costs = (linear(1e-3, 1e-5, 16), linear(1.0, 1e-5, 16), linear(1e-3, 1e-5, 16))
    inputs, ready = bundle.manifest.preprocessing.normalise(pixels[:40]), threading.Event()
    exits = bundle.answer(inputs).exit
    early, late = int(np.flatnonzero(exits == 0)[0]), int(np.flatnonzero(exits > 0)[0])

    async def ask() -> None:
        async with AsyncPredictor(slow(bundle, 1, ready, []), costs=costs) as predictor:
            one = asyncio.create_task(predictor.infer(inputs[[early]]))
            other = asyncio.create_task(predictor.infer(inputs[[late]]))
            assert isinstance((await one)[0], SampleResult) and not other.done()
            ready.set()
            assert isinstance((await other)[0], SampleResult)

    asyncio.run(ask())


def test_the_best_exit_so_far_at_the_deadline(bundle: Bundle, pixels: np.ndarray) -> None:
    inputs = bundle.manifest.preprocessing.normalise(pixels[:3])
    expensive = (CostCurve((1,), (0.001,)), CostCurve((1,), (3600.0,)), CostCurve((1,), (3600.0,)))

    async def ask() -> tuple[list[Any], Any, Any]:
        async with AsyncPredictor(never(bundle), costs=expensive, deadline_ms=60000) as predictor:
            first = await predictor.infer(inputs)
            return first, await predictor.infer(inputs, deadline_ms=1e9), predictor.engine.statistics

    cut, whole, statistics = asyncio.run(ask())
    assert [(outcome.exit, outcome.late) for outcome in cut] == [(0, True)] * 3
    assert [(outcome.exit, outcome.late) for outcome in whole] == [(2, False)] * 3
    assert (statistics.answered, statistics.late) == ([3, 0, 3], [3, 0, 0])
    first = bundle.segments[0](inputs, ())[2]
    assert np.abs(np.stack([outcome.logits for outcome in cut]) - first).max() < 1e-5


def test_a_segment_that_fails_fails_its_batch_alone(bundle: Bundle, pixels: np.ndarray, costs: Costs) -> None:
    inputs = bundle.manifest.preprocessing.normalise(pixels[:4])
    calls: list[int] = []
    inner = bundle.segments[1]

    def segment(state: Any, carry: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("segment-2.onnx failed in ONNX Runtime: out of memory")
        return inner(state, carry)

    broken = replace(never(bundle), segments=(bundle.segments[0], segment, bundle.segments[2]))

    async def ask() -> tuple[list[Any], list[Any], Any]:
        async with AsyncPredictor(broken, costs=costs) as predictor:
            return await predictor.infer(inputs), await predictor.infer(inputs), predictor.engine.statistics

    failed, right, statistics = asyncio.run(ask())
    assert all(isinstance(result, Failed) for result in failed) and statistics.failed == 4
    assert str(failed[0]) == "segment-2.onnx failed in ONNX Runtime: out of memory"
    assert [outcome.exit for outcome in right] == [2] * 4


QUICK_COSTS = (linear(1e-4, 1e-6, 16),) * 3
"""Under which a lone request runs in the thread of its caller."""


def test_a_lone_quick_request_runs_in_the_thread_of_its_caller(bundle: Bundle, pixels: np.ndarray) -> None:
    inputs = bundle.manifest.preprocessing.normalise(pixels[:12])
    threads, inner = list[tuple[bool, int]](), bundle.segments[0]

    def segment(state: Any, carry: Any) -> Any:
        threads.append((threading.current_thread() is threading.main_thread(), len(state)))
        return inner(state, carry)

    async def ask(asked: Bundle) -> tuple[list[Any], list[Any], Any]:
        async with AsyncPredictor(asked, costs=QUICK_COSTS) as predictor:
            while not predictor.engine.quick(1):  # its thread has not begun to wait
                await asyncio.sleep(0.001)
            alone = [(await predictor.infer(row[None]))[0] for row in inputs]
            together = await asyncio.gather(*(predictor.infer(row[None]) for row in inputs))
            return alone, [result for (result,) in together], predictor.statistics

    for asked in (bundle, replace(bundle, segments=(segment, *bundle.segments[1:]))):
        alone, together, statistics = asyncio.run(ask(asked))
        for one, other, row in zip(alone, together, inputs, strict=True):
            assert_same(one, bundle, row)
            assert_same(other, bundle, row)
        assert len({one.exit for one in alone}) > 1 and sum(statistics.answered) == 24
        assert statistics.batches[0].counts[0] >= 12 and all(one.ms > 0 for one in alone)
    assert threads[:12] == [(True, 1)] * 12
    assert not any(here for here, _ in threads[12:]) and max(size for _, size in threads[12:]) > 1


def test_requests_of_two_event_loops_do_not_run_at_the_same_time(bundle: Bundle, pixels: np.ndarray) -> None:
    inputs = bundle.manifest.preprocessing.normalise(pixels[:12])
    running, together = list[None](), list[int]()

    def segment(state: Any, carry: Any) -> Any:
        running.append(None)
        time.sleep(0.001)
        together.append(len(running))
        running.pop()
        return bundle.segments[0](state, carry)

    async def ask(predictor: AsyncPredictor, wait: float) -> list[Any]:
        results = []
        for row in inputs:
            await asyncio.sleep(wait)  # so that one thread finds nothing running, and the other then comes
            results += await predictor.infer(row[None])
        return results

    async def from_two_threads() -> list[list[Any]]:
        asked = replace(bundle, segments=(segment, *bundle.segments[1:]))
        async with AsyncPredictor(asked, costs=QUICK_COSTS) as predictor:
            return await asyncio.gather(
                *(asyncio.to_thread(asyncio.run, ask(predictor, wait)) for wait in (2e-3, 3e-3))
            )

    for results in asyncio.run(from_two_threads()):
        for one, row in zip(results, inputs, strict=True):
            assert_same(one, bundle, row)
    assert set(together) == {1}


def test_a_lone_quick_request_has_a_deadline_and_may_fail(bundle: Bundle, pixels: np.ndarray) -> None:
    inputs, broken = bundle.manifest.preprocessing.normalise(pixels[:1]), threading.Event()

    def segment(state: Any, carry: Any) -> Any:
        if broken.is_set():
            raise ValueError("segment-1.onnx failed in ONNX Runtime: out of memory")
        return bundle.segments[0](state, carry)

    async def ask() -> tuple[Any, Any, Any, Any]:
        asked = replace(never(bundle), segments=(segment, *bundle.segments[1:]))
        async with AsyncPredictor(asked, costs=QUICK_COSTS) as predictor:
            while not predictor.engine.quick(1):
                await asyncio.sleep(0.001)
            late, right = await predictor.infer(inputs, deadline_ms=1e-3), await predictor.infer(inputs)
            broken.set()
            failed = await predictor.infer(inputs)
        with pytest.raises(RuntimeError, match="is stopped"):
            await predictor.infer(inputs)
        return late[0], right[0], failed[0], predictor.statistics

    late, right, failed, statistics = asyncio.run(ask())
    assert (late.exit, late.late, right.exit, right.late) == (0, True, 2, False)
    assert str(failed) == "segment-1.onnx failed in ONNX Runtime: out of memory" and statistics.failed == 1
    assert (statistics.answered, statistics.late) == ([1, 0, 1], [1, 0, 0])


def test_a_full_queue_and_the_survivors_of_a_stop(bundle: Bundle, pixels: np.ndarray, costs: Costs) -> None:
    inputs, ready = bundle.manifest.preprocessing.normalise(pixels[:5]), threading.Event()

    async def ask() -> None:
        predictor = AsyncPredictor(slow(bundle, 0, ready, []), costs=costs, queue=4)
        held = asyncio.create_task(predictor.infer(inputs[:3]))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="3 of at most 4"):
            await predictor.infer(inputs[3:])
        closing = asyncio.create_task(asyncio.to_thread(predictor.close))
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="is stopped"):
            await predictor.infer(inputs[3:4])
        ready.set()
        await closing
        assert [type(result) for result in await held] == [SampleResult] * 3

    asyncio.run(ask())


def test_closed_at_once(bundle: Bundle, pixels: np.ndarray, costs: Costs) -> None:
    """The batch that runs is finished; a call that waits for another one raises `Failed`."""
    inputs, ready, seen = bundle.manifest.preprocessing.normalise(pixels[:2]), threading.Event(), list[int]()

    async def ask() -> None:
        predictor = AsyncPredictor(slow(bundle, 0, ready, seen), costs=costs)
        running = asyncio.create_task(predictor.infer(inputs[:1]))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(predictor.infer(inputs[1:]))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(asyncio.to_thread(predictor.close, finish=False))
        (dropped,) = await waiting
        assert isinstance(dropped, Failed) and str(dropped).endswith("is stopped")
        ready.set()
        await closing
        assert [type(result) for result in await running] == [SampleResult] and seen == [1]

    asyncio.run(ask())


def test_survivors_of_different_requests_share_a_batch(bundle: Bundle, pixels: np.ndarray, costs: Costs) -> None:
    inputs, ready, seen = bundle.manifest.preprocessing.normalise(pixels[:12]), threading.Event(), list[int]()

    async def ask() -> None:
        held = slow(never(bundle), 0, ready, seen)
        async with AsyncPredictor(held, costs=costs, max_batch=16) as predictor:
            tasks = [asyncio.create_task(predictor.infer(inputs[[0]]))]
            while not seen:
                await asyncio.sleep(0.001)
            tasks += [asyncio.create_task(predictor.infer(inputs[[row]])) for row in range(1, 12)]
            await asyncio.sleep(0.001)
            ready.set()
            await asyncio.gather(*tasks)
            assert predictor.engine.statistics.batches[1].counts[:1] == [0]  # the lone first one waited for the others

    asyncio.run(ask())
    assert seen == [1, 11]


@pytest.mark.parametrize(("age", "each", "together"), [(10.0, 1e-4, True), (0.0, 1e-4, False), (10.0, 2e-2, False)])
def test_the_rest_of_a_batch_continues_at_once(
    bundle: Bundle, pixels: np.ndarray, age: float, each: float, together: bool
) -> None:
    """Results come together if the rest takes at most 10 ms and a quarter of the age of the request."""
    inputs = bundle.manifest.preprocessing.normalise(pixels[:16])
    expected, calls, now = bundle.answer(inputs), Calls(len(inputs)), 0.0
    assert len(set(expected.exit.tolist())) > 1
    scheduler = Scheduler((linear(1e-9, each, 16),) * 3, overhead=4 * each, most=16)
    engine = SegmentEngine(bundle, scheduler, clock=lambda: now)
    with engine._changed:
        submit_each(engine, inputs, range(len(inputs)), calls)
        now = age
    calls.wait()
    engine.stop()
    results = {key: result for key, (result,) in calls.results.items()}
    assert [results[row].exit for row in range(len(inputs))] == expected.exit.tolist()
    assert np.abs(np.stack([results[row].logits for row in range(len(inputs))]) - expected.logits).max() < 1e-5
    counts = engine.statistics.batches
    assert sum(counts[0].counts) == 1 and len(calls.each) == (1 if together else len(set(expected.exit.tolist())))


@pytest.mark.parametrize("age", [0.0, 10.0])
def test_results_are_not_held_for_the_next_batch(bundle: Bundle, pixels: np.ndarray, age: float) -> None:
    """All exit at the first exit, in three batches of eight that take 0.8 ms."""
    inputs = bundle.manifest.preprocessing.normalise(pixels[:24])
    calls, now = Calls(len(inputs)), 0.0
    asked = replace(bundle, policy=ExitPolicy(thresholds=(0.0,) * 3, enabled=(True,) * 3))
    scheduler = Scheduler((linear(1e-9, 1e-4, 8),) * 3, most=8, overhead=1.0)
    engine = SegmentEngine(asked, scheduler, clock=lambda: now)
    with engine._changed:
        submit_each(engine, inputs, range(24), calls)
        now = age
    calls.wait()
    engine.stop()
    assert calls.sizes == [8, 8, 8]


def test_an_image_that_ran_alone_may_wait_for_others(bundle: Bundle, pixels: np.ndarray) -> None:
    """Its state was in memory for single images, which the next one overwrites."""
    inputs = bundle.manifest.preprocessing.normalise(pixels[:3])
    requests = [Request(row, lambda _: None, 1, 0.0) for row in range(3)]
    tickets = [Ticket(each, 0, SampleRow(SegmentInput(inputs[row][None]), 0)) for row, each in enumerate(requests)]
    samples = [Sample(ticket, 0.0, None) for ticket in tickets]
    for sample in samples:
        alone = RunningBatch(never(bundle), Work(0, [sample]))
        alone.advance()
        assert not alone.passed(0.0, 0.5) and alone.continuing() == [0] and alone.exited() == []
        alone.store()
    together = RunningBatch(never(bundle), Work(1, samples))
    for segment in (1, 2):
        together.advance()
        assert together.passed(1.0, 1.3) is (segment == 2)
    assert together.exited() == samples and together.continuing() == []
    expected = never(bundle).answer(inputs)
    for row, ticket in enumerate(tickets):
        result = ticket.outcome(late=False)
        np.testing.assert_allclose(result.logits, expected.logits[row], rtol=1e-5, atol=1e-5)
        assert result.exit == 2 and result.ms == pytest.approx(500 + 2 * 300 / 3)


def test_the_results_of_a_request_are_handed_over_together_in_its_order(bundle: Bundle, pixels: np.ndarray) -> None:
    """Its images exit at different exits, in small batches, between the images of other requests."""
    inputs = bundle.manifest.preprocessing.normalise(pixels[:24])
    expected = bundle.answer(inputs)
    for workers in (1, 2):
        calls = Calls(3)
        engine = SegmentEngine(bundle, Scheduler((linear(1e-9, 1.0, 5),) * 3, overhead=1.0, most=5, workers=workers))
        parts = {"a": slice(0, 12), "b": slice(12, 13), "c": slice(13, 24)}
        with engine._changed:
            for key, rows in parts.items():
                engine.submit(inputs[rows], key, calls)
        calls.wait()
        engine.stop()
        for key, rows in parts.items():
            results = calls.results[key]
            assert [result.exit for result in results] == expected.exit[rows].tolist()
            assert np.abs(np.stack([result.logits for result in results]) - expected.logits[rows]).max() < 1e-5


def test_results_wait_for_the_rest_of_their_request_that_continues(bundle: Bundle, pixels: np.ndarray) -> None:
    """A request of sixteen images, whose rest takes 0.4 seconds, is answered at its end only: in one call."""
    inputs = bundle.manifest.preprocessing.normalise(pixels[:16])
    deliveries, done = list[int](), threading.Event()
    engine = SegmentEngine(bundle, Scheduler((linear(1e-9, 2e-2, 16),) * 3, overhead=8e-2, most=16), clock=lambda: 0.0)
    deliver = engine._deliver

    def counting(samples: Any, late: bool) -> None:
        if samples:
            deliveries.append(len(samples))
        deliver(samples, late)

    engine._deliver = counting  # type: ignore[method-assign]
    engine.submit(inputs, "all", lambda _: done.set())
    assert done.wait(20)
    engine.stop()
    assert deliveries == [16]


def test_a_result_is_not_held_beyond_its_deadline(bundle: Bundle, pixels: np.ndarray) -> None:
    """One image exits at the first exit; the others, which continue for 1.6 ms, have no deadline."""
    inputs = bundle.manifest.preprocessing.normalise(pixels[:40])
    exits = bundle.answer(inputs).exit
    early, late = np.flatnonzero(exits == 0)[:1], np.flatnonzero(exits > 0)[:16]

    def handed(deadline_ms: float) -> list[int]:
        calls, now = Calls(1 + len(late)), 0.0
        scheduler = Scheduler((linear(1e-9, 1e-4, 32),) * 3, overhead=4e-4, most=32)
        engine = SegmentEngine(bundle, scheduler, clock=lambda: now)
        with engine._changed:  # both requests are there when its thread looks
            submit_each(engine, inputs[early], ["early"], calls, deadline_ms)
            submit_each(engine, inputs[late], range(len(late)), calls)
            now = 10.0
        calls.wait()
        engine.stop()
        return calls.sizes

    assert handed(10001.0)[0] == 1 and handed(11000.0)[0] > 1


def test_the_thread_outlives_errors_of_those_who_listen(
    bundle: Bundle, pixels: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """A closed event loop, and a score that a test of drift cannot take; other requests get their results."""
    inputs = bundle.manifest.preprocessing.normalise(pixels[:4])
    calls = Calls(2 * len(inputs))

    def broken(*_: Any) -> None:
        raise RuntimeError("Event loop is closed")

    engine = SegmentEngine(bundle, Scheduler((linear(1e-9, 1e-4, 16),) * 3, overhead=1e-4, most=16))
    engine.statistics.listener = broken
    with engine._changed:
        submit_each(engine, inputs, range(4), broken)
        submit_each(engine, inputs, range(4), calls)
    submit_each(engine, inputs, range(4, 8), calls)
    calls.wait()
    assert engine.alive
    engine.stop()
    assert sum(engine.statistics.answered) == 12
    messages = {record.getMessage().split(" of exit")[0] for record in caplog.records}
    assert any(message.startswith("the results of ") for message in messages)
    assert any(message.startswith("the score ") for message in messages)


def test_several_workers(bundle: Bundle, pixels: np.ndarray, costs: Costs) -> None:
    inputs = bundle.manifest.preprocessing.normalise(pixels[:64])

    async def ask() -> list[Any]:
        async with AsyncPredictor(bundle, costs=costs, workers=2, max_batch=4) as predictor:
            return [(await task)[0] for task in [predictor.infer(inputs[[row]]) for row in range(64)]]

    for outcome, row in zip(asyncio.run(ask()), inputs, strict=True):
        assert_same(outcome, bundle, row)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"queue": -1}, "queue must be at least 1, got -1"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"deadline_ms": 0.0}, "deadline_ms must be a positive number, got 0.0"),
        ({"deadline_ms": float("nan")}, "deadline_ms must be a positive number, got nan"),
        ({"max_batch": 10**9}, "max_batch 1000000000 needs"),
    ],
)
def test_numbers_that_make_no_sense(bundle: Bundle, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AsyncPredictor(bundle, **values)


def test_measured_costs(bundle: Bundle) -> None:
    curves = measure(bundle, 4)
    assert [curve.sizes for curve in curves] == [(1, 2, 4)] * 3


def test_segments_are_measured_in_turn_as_the_server_runs_them(bundle: Bundle) -> None:
    ran: list[int] = []

    def recorded(number: int, segment: Any) -> Any:
        def run(state: Any, carry: Any) -> Any:
            ran.append(number)
            return segment(state, carry)

        return run

    measure(replace(bundle, segments=tuple(recorded(*each) for each in enumerate(bundle.segments))), 1)
    assert len(ran) > 15 and ran == ([0, 1] + [0, 1, 2] * len(ran))[: len(ran)]


def test_a_slow_period_does_not_make_a_batch_size_look_expensive(bundle: Bundle) -> None:
    ran: list[int] = []

    def segment(state: Any, carry: Any) -> Any:
        ran.append(len(state))
        if len(state) == 4 and ran.count(4) <= 4:  # once for the inputs of the next segment, then three rounds
            time.sleep(0.1)
        return bundle.segments[0](state, carry)

    curves = measure(replace(bundle, segments=(segment, *bundle.segments[1:])), 8)
    assert curves[0].sizes == (1, 2, 4, 8) and curves[0](4) < 0.1


def test_rows_of_one_block_stay_one_block() -> None:
    entering = SegmentInput((np.arange(6).reshape(3, 2),), (np.arange(3),), {"total": np.arange(3)})
    assert gather([SampleRow(entering, index) for index in range(3)]) is entering
    both = gather(
        [
            SampleRow(entering, 2),
            SampleRow(entering, 0),
            SampleRow(SegmentInput((np.full((1, 2), 9),), (np.array([7]),), {"total": np.array([5])}), 0),
        ]
    )
    assert both.state[0].tolist() == [[4, 5], [0, 1], [9, 9]]
    assert both.carry[0].tolist() == [2, 0, 7] and both.policy_carry["total"].tolist() == [2, 0, 5]


def test_it_runs_without_torch(
    folder: Path, images: list[bytes], tmp_path: Path, without_torch: Callable[..., str]
) -> None:
    (tmp_path / "a.png").write_bytes(images[0])
    program = """
import asyncio, offramp
async def ask():
    async with offramp.AsyncPredictor(sys.argv[1], max_batch=2) as predictor:
        return await predictor.predict(sys.argv[2])
print(asyncio.run(ask()).label)
"""
    wanted = next(iter(offramp.load_bundle(folder).predict([tmp_path / "a.png"])))
    assert without_torch(program, folder, tmp_path / "a.png").strip() == wanted.label
