"""Everything takes turns on the same images, and ratios are what they say; never how long anything took."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from offramp.early_exit.graphed_policy import GraphedExits
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.measure import interleaved_benchmark as module
from offramp.measure.interleaved_benchmark import (
    GROUP_IMAGES,
    MIN_GROUPS,
    PROBE,
    WAYS,
    random_batches,
    run_interleaved,
)
from offramp.measure.runner import Runner
from offramp.runs.bench import Benchmark
from offramp.runs.bench_text import _times, bench_text

PIXELS = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
POLICY = ExitPolicy(thresholds=(0.9, NEVER, 0.0), enabled=(True, True, True))


def segment(calls: list[tuple[str, list[float]]], name: str) -> Any:
    """Sure of inputs below ten, and of nothing else."""

    def run(state: Any, carry: Any) -> Any:
        values = state[0] if isinstance(state, tuple) else state
        calls.append((name, values.ravel().tolist()))
        logits = np.where(values.reshape(-1, 1) < 10, [[9.0, 0.0]], [[0.1, 0.0]]).astype(np.float32)
        return (values,), (), logits

    return run


def runner(calls: list[tuple[str, list[float]]], name: str = "numpy", **more: Any) -> Runner:
    parts = [segment(calls, f"{name} segment {number}") for number in range(3)]
    every = [segment(calls, f"{name} every {number}") for number in range(3)]
    return Runner(name, lambda pixels: pixels.astype(np.float32), segment(calls, f"{name} plain"), every, parts, **more)


def test_every_image_is_seen_once_before_one_is_seen_again() -> None:
    for size in (1, 7, 20, 45):
        batches = list(islice(random_batches(PIXELS, size, seed=1), 40))
        assert all(len(hand) == size for hand in batches)
        order = np.concatenate(batches).ravel()
        for begin in range(0, len(order) - 19, 20):
            assert sorted(order[begin : begin + 20].tolist()) == list(range(20))
    first, again, other = (next(random_batches(PIXELS, 20, seed)).ravel().tolist() for seed in (0, 0, 1))
    assert first == again != other and first != sorted(first)


def test_all_ways_see_the_same_images_in_every_round() -> None:
    calls: list[tuple[str, list[float]]] = []
    result = run_interleaved(
        [runner(calls, "a"), runner(calls, "b", rivals={"r": segment(calls, "rival")})], POLICY, PIXELS, 4, 1e-9
    )
    rounds = MIN_GROUPS + 2
    assert (result["rounds"], result["batch"]) == (MIN_GROUPS, 4)
    count = Counter(name for name, _ in calls)
    for name in "ab":
        assert count[f"{name} plain"] == 3 * rounds  # untimed, plain, and as the one exit that is left
        assert count[f"{name} every 2"] == rounds
        looked = PROBE[0]
        assert count[f"{name} segment 0"] == 2 * rounds + looked  # leaving early, and segments
    assert count["rival"] == rounds
    whole = {name: [values for called, values in calls if called == name] for name in ("a plain", "b plain", "rival")}
    images = [values for values in whole["rival"] for _ in range(3)]
    assert whole["a plain"] == whole["b plain"] == images
    assert set(result["runtimes"]["b"]["rivals"]) == {"r"} and not result["runtimes"]["a"]["rivals"]


def test_a_runtime_has_several_small_batches_in_a_row_after_an_untimed_one() -> None:
    calls: list[tuple[str, list[float]]] = []
    a, b = runner(calls, "a"), runner(calls, "b")
    result = run_interleaved([a, b], POLICY, PIXELS, 4, 0.5)
    group = GROUP_IMAGES // 4
    assert result["rounds"] % group == 0 and result["rounds"] >= MIN_GROUPS * group
    timed = [(name, values) for name, values in calls if name.endswith(("plain", "every 0"))][-2 * (3 * group + 1) :]
    first, second = timed[: 3 * group + 1], timed[3 * group + 1 :]
    assert {name[0] for name, _ in first} | {name[0] for name, _ in second} == {"a", "b"}
    for turn in (first, second):
        assert len({name[0] for name, _ in turn}) == 1 and turn[0][0].endswith("plain")
        assert turn[0][1] == turn[1][1], "the untimed run is on the first of the batches"
        each = [values for _, values in turn[1:]]
        assert all(each[begin] == each[begin + 1] == each[begin + 2] for begin in range(0, len(each), 3))
    assert [values for _, values in first] == [values for _, values in second]


def test_who_leaves_where_is_counted() -> None:
    result = run_interleaved([runner([])], POLICY, PIXELS, 20, 1e-9)["runtimes"]["numpy"]
    assert result["shares"] == [0.5, 0.0, 0.5]
    assert len(result["segment_ms"]) == 3 and min(result["segment_ms"]) > 0 and result["inputs_ms"] > 0
    assert all(result[way][key] > 0 for way in WAYS for key in ("p50", "p95", "p99", "mean", "images_per_second"))


def test_segments_are_priced_for_as_many_samples_as_reach_them() -> None:
    """Half of the images leave at the first exit, nobody at the second; of one image, all or none."""
    calls: list[tuple[str, list[float]]] = []
    result = run_interleaved([runner(calls)], POLICY, PIXELS, 20, 1e-9)["runtimes"]["numpy"]
    assert result["segment_samples"] == [20, 10, 10]
    sizes = Counter((name, len(values)) for name, values in calls if "numpy segment" in name)
    rounds = 2 * (MIN_GROUPS + 2)
    assert {key: count for key, count in sizes.items() if key[1] <= 20} == {
        ("numpy segment 0", 20): rounds, ("numpy segment 1", 10): rounds, ("numpy segment 2", 10): rounds,
    }  # fmt: skip
    assert run_interleaved([runner([])], POLICY, PIXELS, 1, 1e-9)["runtimes"]["numpy"]["segment_samples"] == [1, 1, 1]


def test_the_ratios_are_what_they_say() -> None:
    times = module._Times(
        (10, 5, 2), segments=[[1.0, 1.0, 0.5], [3.0, 1.0, 0.3]], reached=[[1.0, 0.5, 0.0], [1.0, 0.5, 0.5]]
    )
    times.ways |= {"plain": [4.0, 6.0], "all": [7.0, 9.0], "adaptive": [2.0, 3.0], "off": [5.0, 6.0]}
    times.ways["rival x"] = [1.0, 1.0]
    times.exits, times.inputs = [0, 0, 1, 2], [0.002, 0.004, 0.003]
    said = module._report(times, POLICY, batch=10)
    assert said["plain"] == {
        "p50": 5000.0, "p95": pytest.approx(5900), "p99": pytest.approx(5980), "mean": 5000.0, "images_per_second": 2.0,
    }  # fmt: skip
    assert said["speedup"] == 2.0
    assert said["predicted"] == pytest.approx(5 / (2 * 1 + 2 * 0.5 + 2 * 0.25))
    assert said["of_predicted"] == pytest.approx(3.5 / 2.5)
    assert said["off_of_plain"] == pytest.approx((5 / 4 + 1) / 2)
    assert said["segment_ms"] == [200.0, 200.0, 200.0] and said["segment_samples"] == [10, 5, 2]
    assert said["shares"] == [0.5, 0.25, 0.25] and said["inputs_ms"] == 3.0
    assert said["rivals"]["x"]["images_per_second"] == 10.0


def test_there_must_be_images_and_runtimes() -> None:
    with pytest.raises(ValueError, match="there are no images to measure on"):
        run_interleaved([runner([])], POLICY, PIXELS[:0], 1, 1e-9)
    with pytest.raises(ValueError, match="there is no runtime to measure"):
        run_interleaved([], POLICY, PIXELS, 1, 1e-9)


def test_policies_within_graphs_take_the_place_of_the_loop() -> None:
    """On a CPU nothing is captured; exits are those of the loop, and every segment is timed by itself."""

    def part(state: Any, carry: Any) -> Any:
        sure = torch.tensor([9.0, 0.0]) * (state < 10)
        return state, carry, sure + torch.tensor([0.1, 0.0])

    segments = [part] * 3
    graphed = GraphedExits(segments, POLICY, torch.device("cpu"))
    alone, built = Counter[tuple[int, int]](), list[int]()
    step, prepare = graphed.alone, graphed.prepare
    graphed.alone = lambda place, samples, inputs: (alone.update([(place, samples)]), step(place, samples, inputs))[1]  # type: ignore[method-assign]
    graphed.prepare = lambda inputs: (prepare(inputs), built.append(len(graphed.steps)))[0]  # type: ignore[method-assign,func-returns-value]

    def to_inputs(pixels: np.ndarray) -> Any:
        return torch.from_numpy(pixels.reshape(len(pixels), 1)).float()

    runners = [Runner(name, to_inputs, part, segments, segments) for name in ("loop", "graph")]
    runners[1] = replace(runners[1], graphed=graphed)
    record = run_interleaved(runners, POLICY, PIXELS, 4, seconds=0.0)
    reports = record["runtimes"]
    assert reports["graph"]["shares"] == reports["loop"]["shares"] and reports["graph"]["shares"][2] > 0
    assert set(alone) == {(0, 4), *((place, size) for place, size in enumerate(reports["graph"]["segment_samples"]))}
    assert len(reports["graph"]["segment_ms"]) == 3 and min(reports["graph"]["segment_ms"]) > 0
    assert built == [len(graphed.steps)] == [1 + 2 * 3]  # 4 samples, then 1, 2 or 4: nothing is captured while timing


def test_a_gpu_says_what_copies_take_and_a_cpu_prints_nothing_of_it() -> None:
    runtimes = run_interleaved([runner([])], POLICY, PIXELS, 20, 1e-9)["runtimes"]
    record = {"batch": 20, "rounds": 9, "runtimes": {"numpy": {**runtimes["numpy"], "device": "cpu", "inputs_ms": 2.5}}}
    assert "copying" not in _times(record)
    record["runtimes"]["torch"] = {**record["runtimes"]["numpy"], "device": "cuda"}
    assert _times(record).endswith("copying and normalising a batch, not in these times: torch 2.500 ms")


def test_where_early_exit_is_slower_the_text_says_what_to_do() -> None:
    reports = run_interleaved([runner([])], POLICY, PIXELS, 20, 1e-9)["runtimes"]
    speedups = {1: {"torch": 0.5, "onnx": 0.99}, 8: {"torch": 0.97, "onnx": 1.5}, 64: {"torch": 1.2, "onnx": 0.9}}
    batches = [
        {
            "batch": batch,
            "rounds": 9,
            "runtimes": {
                name: {**reports["numpy"], "device": "cpu", "speedup": speedup} for name, speedup in by.items()
            },
        }
        for batch, by in speedups.items()
    ]
    images = {"from": "test", "count": 20, "seed": 0}
    result = Benchmark("runs/a", "run", images, 1.0, 1, {}, {}, batches, 1.0, None, {})
    advice = bench_text(result).split("\n\n")[-2:]
    assert [" ".join(each.split()) for each in advice] == [
        "torch: early exit is more than 2 % slower than the plain network at batch 1, 8; "
        "calibrate the run with --runtime torch --never-slower-at 1,8, which disables exits",
        "onnx: early exit is more than 2 % slower than the plain network at batch 64; "
        "calibrate the run with --runtime onnx --never-slower-at 64, which disables exits",
    ]
    fast = {"batch": 1, "rounds": 9, "runtimes": {"onnx": {**batches[0]["runtimes"]["onnx"], "speedup": 0.985}}}
    assert "slower" not in bench_text(Benchmark("runs/a", "run", images, 1.0, 1, {}, {}, [fast], 1.0, None, {}))
