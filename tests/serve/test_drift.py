"""Drift: no alarm while nothing changes, at the stated rate; an alarm soon after answers have changed; feedback."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import httpx
import numpy as np
import pytest

from offramp.bundle.manifest import render
from offramp.bundle.read import Bundle, open_bundle, read_manifest
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import load_with_origin
from offramp.early_exit.score_bins import BINS, exit_counts, score_bin
from offramp.serve.costs import CostCurve
from offramp.serve.drift import CalReference, DriftMonitor, reference
from offramp.serve.feedback import Feedback, _write, fit
from offramp.serve.server import Server
from offramp.serve.versions import open_versions

Draw = Callable[[random.Random], tuple[int, float]]


def usual(rng: random.Random) -> tuple[int, float]:
    """The answers of a server while nothing changes: an exit and a score."""
    exit = rng.choices((0, 1, 2), (0.6, 0.3, 0.1))[0]
    return exit, min(1.0, max(0.0, rng.gauss(0.9 - 0.1 * exit, 0.1)))


def cal(rng: random.Random, samples: int) -> CalReference:
    counts = [[0] * BINS for _ in range(3)]
    for _ in range(samples):
        exit, score = usual(rng)
        counts[exit][score_bin(score)] += 1
    return CalReference(tuple(map(tuple, counts)))


def first_alarm(seed: int, draw: Draw, samples: int, before: int = 0) -> int | None:
    """After how many answers the alarm comes, of which the first ones are as usual."""
    rng = random.Random(seed)
    monitor = DriftMonitor(cal(rng, 500), 0.05, seed=seed)
    for number in range(samples):
        monitor.add(*(usual if number < before else draw)(rng))
    return monitor.alarm


@pytest.mark.parametrize(
    ("servers", "answers", "most"),
    [(60, 500, 9), pytest.param(400, 3000, 32, marks=pytest.mark.full)],
)
def test_false_alarms_are_as_rare_as_stated(servers: int, answers: int, most: int) -> None:
    """At a rate of 0.05, more than so many of these servers raise an alarm with a probability below 0.5 %."""
    alarms = [first_alarm(seed, usual, answers) for seed in range(servers)]
    assert sum(alarm is not None for alarm in alarms) <= most


@pytest.mark.parametrize(
    "changed",
    [
        lambda rng: (usual(rng)[0], usual(rng)[1] - 0.15),  # less certain at the same exits
        lambda rng: (rng.choices((0, 1, 2), (0.3, 0.4, 0.3))[0], usual(rng)[1]),  # later exits
        lambda rng: (0, 1.0),  # the same easy image again and again
    ],
    ids=["scores", "exits", "easy"],
)
def test_an_alarm_soon_after_a_change(changed: Draw) -> None:
    alarms = [first_alarm(seed, changed, 1300, before=300) for seed in range(5)]
    assert all(alarm is not None and 300 < alarm < 1300 for alarm in alarms), alarms


def test_the_alarm_is_called_once() -> None:
    called: list[int] = []
    monitor = DriftMonitor(cal(random.Random(0), 500), 0.01, lambda: called.append(monitor.samples))
    for _ in range(500):
        monitor.add(2, 0.1)
    report = monitor.report()
    assert called == [report["alarm_after"]] and report["alarm"] and report["shares"] == [0.0, 0.0, 1.0]
    assert report["log10_evidence_largest"] >= 2 and report["cal_shares"][0] == pytest.approx(0.6, abs=0.1)


def test_counts_of_cal_follow_the_policy() -> None:
    logits = np.log(np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.99, 0.01], [0.7, 0.3]]], np.float32))
    counts = exit_counts(ExitPolicy(thresholds=(0.8, 0.0), enabled=(True, True)), logits)
    assert [sum(row) for row in counts] == [1, 1]
    assert counts[0][score_bin(0.9 - 1e-6)] + counts[0][score_bin(0.9 + 1e-6)] >= 1
    assert counts[1][score_bin(0.7 - 1e-6)] + counts[1][score_bin(0.7 + 1e-6)] >= 1
    assert [score_bin(value) for value in (-1, 0, 0.049, 1, 7)] == [0, 0, 0, BINS - 1, BINS - 1]


def test_export_stores_the_scores_of_cal(bundle: Bundle) -> None:
    stored = reference(bundle.manifest)
    assert stored is not None and sum(map(sum, stored.counts)) == bundle.manifest.provenance["policy"]["samples"]
    for damaged in ([], "x", [[0] * BINS] * 2, [[-1] * BINS] * 3, [[0.5] * BINS] * 3, [[0] * BINS] * 3):
        provenance = {"policy": {"scores": damaged}}
        assert reference(replace(bundle.manifest, provenance=provenance)) is None


class TestFeedback:
    @pytest.fixture
    def full(self, folder: Path, tmp_path: Path, pixels: np.ndarray, labels: np.ndarray) -> Iterator[Feedback]:
        """A copy of the bundle with 150 labelled images."""
        opened = open_bundle(copytree(folder, tmp_path / "copy"))
        feedback = Feedback(opened, 1000)
        for image, label in zip(opened.manifest.preprocessing.normalise(pixels[:150]), labels):
            feedback.add(image[None], int(label))
        yield feedback

    def test_a_new_policy_beside_the_old_ones(self, full: Feedback) -> None:
        folder = full.bundle.folder
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert [full.recalibrate()[0] for _ in range(2)] == ["policy-2.json", "policy-3.json"]
        after = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
        policy, origin = load_with_origin(folder / "policy-2.json")
        assert policy.enabled == full.bundle.policy.enabled
        assert (origin["split"], origin["samples"]) == ("feedback", 150) and origin["goal"]["max_drop"] == 0.05
        expected = origin["expected"]
        assert expected["accuracy"] >= expected["plain_accuracy"] - 0.05 - 1e-9

    def test_every_kind_of_goal(self, full: Feedback) -> None:
        kept = list(full._kept)
        logits, labels = np.stack([one for one, _ in kept], 1), np.array([label for _, label in kept])
        costs = [100, 50, 50]
        for goal in ({"macs": 150.0}, {"accuracy": 0.3}, {"risk": 0.2, "delta": None}):
            policy, about = fit(full.bundle.policy, {"goal": goal, "segment_costs": costs}, logits, labels)
            assert policy.enabled == (True,) * 3 and 100 <= about["cost"] <= 200
            assert "macs" not in goal or about["cost"] <= 150

    def test_too_few_images_and_no_goal(self, full: Feedback, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="needs 100 labelled images at least, there are 0"):
            Feedback(full.bundle, 10).recalibrate()
        (full.bundle.folder / "policy.json").write_text(full.bundle.policy.to_json())
        with pytest.raises(ValueError, match=r"policy.json says no goal: export a run that was calibrated"):
            full.recalibrate()

    def test_a_folder_that_holds_another_bundle_now(self, full: Feedback) -> None:
        """A policy belongs to the segments on whose logits it was fitted, on whatever folder they were read from."""
        folder = full.bundle.folder
        full.recalibrate()
        other = replace(read_manifest(folder), measured={"accuracy": 0.5})
        (folder / "manifest.json").write_text(render(other))
        with pytest.raises(ValueError, match=r"holds another bundle than the one that is served: load the model again"):
            full.recalibrate()
        with pytest.raises(ValueError, match=r"policy-2.json was fitted to another bundle than the one in .*remove it"):
            open_versions(folder, "onnx")

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        """Such as a read-only file system, on which nothing can be removed either."""
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=r"file cannot be written \(Not a directory\): the new policy is not kept"):
            _write(tmp_path / "file", "{}")

    def test_only_the_newest_are_kept(self, full: Feedback) -> None:
        few = Feedback(full.bundle, 3)
        for image, _ in zip(range(7), range(7)):
            few.add(np.zeros((1, 1, 8, 8), np.float32), image)
        assert len(few) == 3 and [label for _, label in few._kept] == [4, 5, 6]


def test_over_http(
    folder: Path,
    tmp_path: Path,
    images: list[bytes],
    labels: np.ndarray,
    costs: tuple[CostCurve, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Feedback, a new calibration as a new version, and an alarm that is in the log, the metrics and `/drift`."""
    monkeypatch.setattr("offramp.serve.predictor.measure", lambda bundle, most: costs)
    copy = copytree(folder, tmp_path / "digits")
    with (
        Server(copy, port=0, log="errors", max_images=60) as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        files = [("images", (f"{n}.png", image)) for n, image in enumerate(images)]
        names = [str(label) for label in labels[:60]]
        for _ in range(2):
            answer = client.post("/feedback", files=files, data={"labels": names}).json()
        assert answer["accepted"] == 60 and answer["kept"] == 120 and 0 < answer["right"] <= 60
        bad = client.post("/feedback", files=[files[0], ("images", b"x")], data={"labels": names[:2]}).json()
        assert bad["accepted"] == 1 and "image" in bad["errors"][0]["error"]
        for sent, says in ((names[:1], "`labels` must be one class name per image"), (["x"] * 60, "which is no class")):
            wrong = client.post("/feedback", files=files, data={"labels": sent})
            assert wrong.status_code == 400 and says in wrong.json()["error"]
        new = client.post("/feedback/recalibrate").json()
        assert (new["version"], new["file"], new["samples"]) == ("1.2", "policy-2.json", 121)
        assert client.get("/v2/models/digits/versions/1.2/ready").status_code == 404  # until it is loaded
        assert client.post("/v2/repository/models/digits/load").json()["versions"] == ["1", "1.2"]
        few = client.post("/feedback/recalibrate")
        assert few.status_code == 400 and "100 labelled images" in few.json()["error"]
        for _ in range(15):
            client.post("/predict?version=1", files=[files[0]] * 60)
        report = client.get("/drift?version=1").json()
        assert report["tested"] and report["alarm"] and report["samples"] == 900
        fresh = client.get("/drift?version=1.2").json()
        assert fresh["tested"] and not fresh["alarm"] and sum(map(sum, fresh["cal_scores"])) == pytest.approx(1)
        assert fresh["cal_shares"] == pytest.approx(new["shares"])  # those of the images it was fitted on
        text = client.get("/metrics").text
        assert 'offramp_drift_alarm{model="digits",version="1"} 1.0' in text
        assert client.get("/status").json()[0]["drift_alarm"] is True
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [each["version"] for each in events if each["event"] == "drift"] == ["1"]
