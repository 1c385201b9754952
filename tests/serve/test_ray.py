"""Segments as replicas of Ray Serve: the same answers as here; a replica and a node are killed under load."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from offramp.bundle.read import Bundle
from offramp.serve.models import CanGiveUp, Models
from offramp.serve.options import ServeOptions
from offramp.serve.requests import Failed, Result, SampleResult
from offramp.serve.scheduler import QueueFull

pytest.importorskip("ray.serve")
from ray.exceptions import ActorDiedError, RayTaskError

from offramp import __version__
from offramp.serve import ray_deployments, ray_predictor
from offramp.serve.ray_deployments import RayOpener
from offramp.serve.ray_predictor import RayPredictor
from offramp.serve.ray_segment import Passed, RequestInput, SegmentReplica


def segment(bundle: Bundle, index: int, **more: Any) -> SegmentReplica:
    words = {"runtime": "onnx", "max_batch": 32, "threads": 1, "version": __version__, "inline": 1 << 16, **more}
    return SegmentReplica(str(bundle.folder), bundle.policy.to_json(), index, **words)


class Near:
    """A deployment's handle without a cluster: the segment answers in this process, two requests at a time."""

    def __init__(self, bundle: Bundle, index: int, losses: int = 0, delay: float = 0.0) -> None:
        self.segment, self.losses, self.delay = segment(bundle, index), losses, delay
        self.waiting: list[tuple[RequestInput, asyncio.Future[Any]]] = []

    def remote(self, part: RequestInput) -> Any:
        assert part.places is None  # these states are small enough for messages
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append((part, future))
        asyncio.get_running_loop().call_later(self.delay, self.run)
        return future

    def run(self) -> None:
        batch, self.waiting = self.waiting[:2], self.waiting[2:]
        if self.losses and batch:
            self.losses -= 1
            for _, future in batch:
                future.set_exception(ActorDiedError())
            return
        for (_, future), result in zip(batch, self.segment.compute([part.state for part, _ in batch]), strict=True):
            if not future.done():
                future.set_result(result)


def predictor(bundle: Bundle, *handles: Any, **options: Any) -> RayPredictor:
    return RayPredictor(bundle, handles, ServeOptions(**options))


def infer(asked: RayPredictor, *inputs: np.ndarray, **options: Any) -> list[Result]:
    async def ask() -> list[Result]:
        requests = (asked.infer(each, **options) for each in inputs)
        return [result for results in await asyncio.gather(*requests) for result in results]

    return asyncio.run(ask())


def equal(results: Sequence[Result], bundle: Bundle, inputs: np.ndarray) -> None:
    wanted = bundle.answer(inputs)
    outcomes = [result for result in results if isinstance(result, SampleResult)]
    assert len(outcomes) == len(inputs) and not any(outcome.late for outcome in outcomes)
    assert [outcome.exit for outcome in outcomes] == wanted.exit.tolist()
    logits = np.stack([outcome.logits for outcome in outcomes])
    assert np.abs(logits - wanted.logits).max() < 1e-5 * np.abs(wanted.logits).max()
    assert np.allclose([outcome.score for outcome in outcomes], wanted.score, atol=1e-5)


@pytest.fixture
def inputs(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    return bundle.manifest.preprocessing.normalise(pixels[:40])


def test_answers_are_those_of_the_bundle_though_replicas_are_lost(bundle: Bundle, inputs: np.ndarray) -> None:
    handles = [Near(bundle, 0, losses=1), Near(bundle, 1, losses=2), Near(bundle, 2)]
    asked = predictor(bundle, *handles, max_batch=8)
    results = infer(asked, inputs[:1], inputs[1:3], inputs[3:20], inputs[20:])
    equal(results, bundle, inputs)
    assert sum(asked.statistics.answered) == 40 and asked.waiting == [0, 0, 0]
    assert not any(handle.losses for handle in handles)
    assert sum(asked.statistics.batches[2].counts) < sum(asked.statistics.batches[0].counts)


@pytest.mark.parametrize("how", [{"losses": 10**6}, {"delay": 10**6}], ids=["lost", "silent"])
def test_it_is_not_ready_while_no_replica_answers(
    bundle: Bundle, inputs: np.ndarray, monkeypatch: pytest.MonkeyPatch, how: dict[str, int]
) -> None:
    now = 0.0
    monkeypatch.setattr(ray_predictor, "time", SimpleNamespace(perf_counter=lambda: now))
    second = Near(bundle, 1)
    asked = predictor(bundle, Near(bundle, 0), second, Near(bundle, 2))
    hard = int(np.flatnonzero(bundle.answer(inputs).exit > 0)[0])
    second.losses, second.delay = how.get("losses", 0), how.get("delay", 0)

    async def ask() -> None:
        nonlocal now
        now = 100.0
        request = asyncio.create_task(asked.infer(inputs[[hard]]))
        await asyncio.sleep(0)
        assert asked.ready  # though it has heard of no replica for long: nothing was asked
        now = 105.0
        while not asked.waiting[1]:
            await asyncio.sleep(0)
        now = 114.0  # the first segment has answered at 105
        assert asked.ready
        now = 116.0
        await asyncio.sleep(0.2)
        if "losses" in how:  # it is sent again from the first segment on, whose replica answers
            assert asked.ready
            asked.handles[0].losses = 10**6
            await asyncio.sleep(0.2)
            now = 127.0
        assert not asked.ready and asked.alive
        request.cancel()
        await asyncio.wait([request])

    asyncio.run(ask())
    assert asked.ready  # nothing waits
    asked.close()
    assert not asked.ready and not asked.alive


def test_a_full_queue_a_deadline_and_a_segment_that_fails(
    bundle: Bundle, inputs: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = [Near(bundle, 0), Near(bundle, 1, delay=30.0), Near(bundle, 2)]
    asked = predictor(bundle, *slow, queue=4)
    with pytest.raises(QueueFull, match="0 of at most 4 samples wait"):
        infer(asked, inputs[:5])
    late = infer(asked, inputs[:4], deadline_ms=1)
    exits = bundle.answer(inputs[:4]).exit
    assert [(one.exit, one.late) for one in late if isinstance(one, SampleResult)] == [(0, exit > 0) for exit in exits]

    def fail(state: Any, carry: Any) -> Any:
        raise ValueError("the disk is gone")

    monkeypatch.setattr(slow[1].segment, "segment", fail)
    slow[1].delay = 0.0
    results = infer(asked, inputs[:4])
    assert [isinstance(result, Failed) for result in results] == [exit > 0 for exit in exits]
    assert asked.statistics.failed == sum(exits > 0) > 0


def test_a_mistake_is_not_repeated(bundle: Bundle, inputs: np.ndarray) -> None:
    class Mistaken:
        def remote(self, part: RequestInput) -> Any:
            error = RayTaskError("call", "", KeyError("shape"))
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future

    results = infer(predictor(bundle, Mistaken()), inputs[:2])
    assert [type(result) for result in results] == [Failed] * 2


def test_survivors_that_are_large_are_shared(
    bundle: Bundle, inputs: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.serve import ray_segment
    from offramp.serve.rows import SegmentInput

    kept: list[SegmentInput] = []
    monkeypatch.setattr(ray_segment.ray, "put", lambda entering: kept.append(entering) or "reference")
    requests = [SegmentInput(inputs[:30]), SegmentInput(inputs[30:])]
    passed = [each for each in segment(bundle, 0, inline=0).compute(requests) if isinstance(each, Passed)]
    places = [part.places for each in passed if (part := each.onward) is not None]
    assert len(kept) == 1 and places == [
        list(range(len(passed[0].alive))),
        list(range(len(passed[0].alive), len(kept[0]))),
    ]


class Serve:
    """Ray Serve as far as applications are deployed and deleted; `status` may take for ever, as on a lost cluster."""

    class RunTarget(NamedTuple):
        target: Any
        name: str
        prefix: None

    def __init__(self, deaf: int = 0, lost: bool = False) -> None:
        self.applications, self.deaf, self.lost = dict[str, Any](), deaf, lost

    def deployment(self, kind: Any) -> Any:
        return self

    def options(self, **more: Any) -> Any:
        return self

    def bind(self, *arguments: Any, **more: Any) -> Any:
        return self

    def run_many(self, targets: Sequence[Any], wait_for_applications_running: bool) -> list[Any]:
        self.applications |= {target.name: SimpleNamespace(status="DEPLOYING") for target in targets}
        return list(targets)

    def status(self) -> Any:
        if self.lost:
            time.sleep(600)
        return SimpleNamespace(applications=dict(self.applications))

    def delete(self, name: str, _blocking: bool) -> None:
        if self.deaf:
            self.deaf -= 1
        else:
            del self.applications[name]


def opener(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> RayOpener:
    for name in ("deployment", "RunTarget", "run_many", "status", "delete"):
        monkeypatch.setattr(f"ray.serve.{name}", getattr(serve, name))
    monkeypatch.setattr(ray_deployments, "REPEAT", 0.01)
    return RayOpener(SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0}))


def test_a_server_that_stops_waits_for_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what was being deployed is left, even if the controller forgets what it was told."""
    serve = Serve(deaf=2)
    opening = opener(monkeypatch, serve)
    assert isinstance(opening, CanGiveUp)
    models = Models({"digits": folder}, ServeOptions(), opening)

    async def stop() -> None:
        loading = asyncio.create_task(models.load("digits"))
        while not serve.applications:
            await asyncio.sleep(0.01)
        await models.close()
        with pytest.raises(ValueError, match="the server stops"):
            await loading

    asyncio.run(stop())
    assert serve.applications == {} and serve.deaf == 0 and not opening.lost


def test_a_lost_cluster_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opening = opener(monkeypatch, Serve(lost=True))
    monkeypatch.setattr(ray_deployments, "ENDING", 0.1)
    opening._names.add("digits-1-segment-1")
    opening.close()
    assert opening.lost
    monkeypatch.setattr(ray_deployments, "ENDING", 600.0)
    opening._names.add("digits-1-segment-2")
    opening.close()  # at once: it is not asked again


def test_another_version_on_a_node_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match=f"this node has offramp {__version__}, the server 0.0.1"):
        segment(bundle, 0, version="0.0.1")
