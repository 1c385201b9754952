"""Policies: what each score and each ensemble is, in numpy and torch alike, and what a policy file may hold."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.early_exit.policy_file import load, parse, save
from offramp.early_exit.policy_origin import stale

EXITS, BATCH, CLASSES = 4, 9, 5
LOGITS = 3 * torch.randn(EXITS, BATCH, CLASSES, generator=torch.Generator().manual_seed(0))
P = LOGITS.double().softmax(-1)
TOP = P.sort(-1, descending=True).values


def policy(**changes: Any) -> ExitPolicy:
    return ExitPolicy(**{"thresholds": (0.7, 0.6, 0.5, -NEVER), "enabled": (True,) * EXITS, **changes})


def steps(chosen: ExitPolicy, kind: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(answer, score, leaves) of every enabled exit in turn, in numpy, computed from arrays of this kind."""
    carry: dict[str, Any] = {}
    result = []
    for exit in [exit for exit, on in enumerate(chosen.enabled) if on]:
        logits = LOGITS[exit] if kind == "torch" else LOGITS[exit].numpy()
        carry, *values = chosen.step(carry, logits, exit)
        assert all(isinstance(part, torch.Tensor if kind == "torch" else np.ndarray) for part in values)
        assert str(values[0].dtype) in ("float32", "torch.float32")
        result.append(tuple(np.asarray(part) for part in values))
    return result


both = pytest.mark.parametrize("kind", ["numpy", "torch"])


@both
@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("confidence", TOP[..., 0]),
        ("margin", TOP[..., 0] - TOP[..., 1]),
        ("entropy", 1 + (P * P.log()).sum(-1) / math.log(CLASSES)),
    ],
)
def test_scores(kind: str, score: str, expected: torch.Tensor) -> None:
    chosen = policy(score=score)
    for exit, (answer, values, leaves) in enumerate(steps(chosen, kind)):
        np.testing.assert_allclose(values, expected[exit], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(answer, LOGITS[exit])
        np.testing.assert_array_equal(leaves, values >= np.float32(chosen.thresholds[exit]))


@both
def test_a_sample_exactly_as_sure_as_the_threshold_leaves(kind: str) -> None:
    score = steps(policy(), kind)[0][1]
    place, above = (
        policy(thresholds=(float(t), 1.0, 1.0, 1.0)) for t in (score[3], np.nextafter(score[3], np.float32(2)))
    )
    assert steps(place, kind)[0][2][3] and not steps(above, kind)[0][2][3]


@both
def test_at_the_final_exit_everybody_leaves_whatever_its_threshold(kind: str) -> None:
    *early, last = steps(policy(thresholds=(NEVER,) * EXITS), kind)
    assert not any(leaves.any() for _, _, leaves in early) and last[2].all()
    *early, last = steps(policy(score="patience", patience=EXITS + 1), kind)
    assert not any(leaves.any() for _, _, leaves in early) and last[2].all()


@both
def test_temperatures_divide_each_exits_logits(kind: str) -> None:
    temperatures = (0.5, 1.0, 2.0, 4.0)
    for exit, (answer, score, _) in enumerate(steps(policy(temperatures=temperatures), kind)):
        np.testing.assert_allclose(answer, LOGITS[exit] / temperatures[exit], rtol=1e-6)
        sure = (LOGITS[exit].double() / temperatures[exit]).softmax(-1).amax(-1)
        np.testing.assert_allclose(score, sure, rtol=1e-5)


@both
@pytest.mark.parametrize("enabled", [(True,) * 4, (False, True, False, True)])
@pytest.mark.parametrize("answer", ["arithmetic", "geometric", "sum"])
def test_ensembles_look_back_over_the_enabled_exits(kind: str, answer: str, enabled: tuple[bool, ...]) -> None:
    on = [exit for exit, flag in enumerate(enabled) if flag]
    temperatures = (0.5, 1.0, 2.0, 4.0)
    values = steps(policy(answer=answer, enabled=enabled, temperatures=temperatures), kind)
    z = LOGITS.double() / torch.tensor(temperatures)[:, None, None]
    for passed, (logits, score, _) in enumerate(values, 1):
        past = z[on[:passed]]
        if answer == "sum":
            expected = past.sum(0)
        elif answer == "arithmetic":
            expected = past.softmax(-1).mean(0).log()
        else:
            expected = past.log_softmax(-1).mean(0)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(score, expected.softmax(-1).amax(-1), rtol=1e-5)


@both
def test_an_arithmetic_ensemble_of_certainties_stays_finite(kind: str) -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0]])
    _, answer, score, _ = policy(answer="arithmetic").step({}, logits if kind == "torch" else logits.numpy(), 0)
    assert np.isfinite(np.asarray(answer)).all() and float(score[0]) == 1.0


@both
@pytest.mark.parametrize("enabled", [(True,) * 4, (True, False, True, True)])
def test_patience_counts_equal_answers_in_a_row_over_the_enabled_exits(kind: str, enabled: tuple[bool, ...]) -> None:
    chosen = policy(score="patience", patience=2, enabled=enabled)
    on = [exit for exit, flag in enumerate(enabled) if flag]
    said = LOGITS.argmax(-1)[on]
    count = torch.ones(BATCH)
    for passed, (_, score, leaves) in enumerate(steps(chosen, kind)):
        if passed:
            count = torch.where(said[passed] == said[passed - 1], count + 1, 1)
        np.testing.assert_array_equal(score, count)
        np.testing.assert_array_equal(leaves, (count >= 2) | (on[passed] == EXITS - 1))


@both
def test_patience_listens_to_the_ensemble_where_there_is_one(kind: str) -> None:
    said = LOGITS.cumsum(0).argmax(-1)
    scores = [score for _, score, _ in steps(policy(score="patience", answer="sum"), kind)]
    np.testing.assert_array_equal(scores[1], 1 + (said[1] == said[0]).float())


@pytest.mark.parametrize(
    "original",
    [
        policy(),
        ExitPolicy(thresholds=(0.123456789012345678, NEVER, 0.0), enabled=(True, False, True)),
        policy(score="patience", patience=3, answer="geometric", temperatures=(0.5, 1.0, 2.5, 1 / 3)),
    ],
)
def test_a_policy_survives_its_file_to_the_bit(original: ExitPolicy, tmp_path: Path) -> None:
    assert parse(original.to_json()) == original
    save(original, tmp_path / "policy.json", {"seed": 3})
    assert load(tmp_path / "policy.json") == original
    text = json.loads((tmp_path / "policy.json").read_text())
    assert (text["format"], text["version"], text["provenance"]) == ("offramp-policy", 1, {"seed": 3})


def test_whole_numbers_in_a_file_are_numbers() -> None:
    assert parse(text(thresholds=[1, 0.5, 0, -1], digest="absent")).thresholds == (1.0, 0.5, 0.0, -1.0)


def test_a_policy_that_was_changed_is_refused_unless_its_digest_is_removed() -> None:
    whole = policy().to_json({"goal": {"macs": 0.5}})
    for old, new in (("0.5", "0.25"), ("true", "false"), ("macs", "macz")):
        with pytest.raises(ValueError, match=r"^x\.json was changed since it was written: fit it again, or remove its"):
            parse(whole.replace(old, new, 1), "x.json")
    mine = json.loads(whole)
    del mine["digest"]
    mine["thresholds"][0] = 0.25
    assert parse(json.dumps(mine)).thresholds[0] == 0.25


def test_a_policy_belongs_to_the_weights_it_was_fitted_on() -> None:
    origin = {"weights": "last", "epoch": 2, "weights_digest": "aa"}
    older = {"weights": "last", "epoch": 2}
    assert stale(origin, "r", "last", 2, "aa") == stale(older, "r", "last", 2, "aa") == ""
    assert stale(origin, "r", "last", 2, "bb").startswith("The policy was fitted on other weights than these last ones")
    assert "of epoch 2; these are the best ones" in stale(origin, "r", "best", 1, "bb")
    assert stale(origin, "r", "best", 1, "aa") == "", "best may be the very weights of last"


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ({"max_drop": 0.005, "accuracy": 0.7}, "--max-drop 0.5%"),
        ({"accuracy": 0.75}, "--target-accuracy 75%"),
        ({"risk": 0.01, "delta": 0.05}, "--risk 1% --delta 0.05"),
        ({"risk": 0.01, "delta": None}, "--risk 1%"),
        ({"macs": 1234567.0}, "--macs 1234567"),
        ({"ms": 0.25}, "--ms 0.25"),
        ({"macs": "$(rm)"}, "--max-drop 0.5%"),
        (None, "--max-drop 0.5%"),
    ],
)
def test_a_stale_policy_names_the_whole_command(goal: object, words: str) -> None:
    origin = {"weights": "last", "epoch": 1, "goal": goal}
    said = stale(origin, "my run", "best", 2)
    assert said.endswith(f"fit it again with `offramp calibrate 'my run' {words} --weights best`.")


@pytest.mark.parametrize(
    ("origin", "says"),
    [
        ({"samples": "many"}, "provenance.samples must be a whole number, got 'many'"),
        ({"goal": {"macs": "few"}}, "provenance.goal.'macs' must be a finite number or null, got 'few'"),
        ({"plain": [0.5]}, "provenance.plain must be an object"),
        ({"certificate": {}}, "provenance.certificate.samples is missing"),
    ],
)
def test_the_provenance_of_a_policy_is_checked(tmp_path: Path, origin: dict[str, Any], says: str) -> None:
    save(policy(), tmp_path / "policy.json", origin)
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "policy.json")
    assert f"policy.json is damaged: {says}" in str(caught.value)


def test_a_key_that_stands_twice_and_numbers_that_json_lacks_are_refused() -> None:
    whole = policy().to_json()
    for old, new, says in (
        ('"patience": 1', '"patience": 2, "patience": 1', "the key 'patience' appears there twice"),
        ('"patience": 1', '"patience": NaN', "NaN is no number of JSON"),
    ):
        assert old in whole
        with pytest.raises(ValueError, match=f"^x.json is damaged: it is not JSON .{says}"):
            parse(whole.replace(old, new, 1), "x.json")


def test_the_policy_that_was_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    one, two, three = (policy(thresholds=(t, 1.0, 1.0, 1.0)) for t in (0.1, 0.2, 0.3))
    save(one, path)
    assert [file.name for file in tmp_path.iterdir()] == ["policy.json"]
    save(two, path)
    assert (load(path), load(tmp_path / "policy.json.old")) == (two, one)
    save(three, path)
    assert (load(path), load(tmp_path / "policy.json.old")) == (three, two)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["policy.json", "policy.json.old"]


def test_there_is_a_whole_policy_at_every_moment(tmp_path: Path) -> None:
    path, stop = tmp_path / "policy.json", threading.Event()
    missing: list[Exception] = []

    def watch() -> None:
        while not stop.is_set():
            try:
                load(path)
            except (OSError, ValueError) as error:
                missing.append(error)

    save(policy(), path)
    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(100):
        save(policy(), path)
    stop.set()
    watcher.join()
    assert not missing


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"thresholds": (1.0, 1.0)}, "one threshold, flag and temperature per exit, got 2, 4, 4"),
        ({"temperatures": (1.0,)}, "one threshold, flag and temperature per exit, got 4, 4, 1"),
        ({"thresholds": (), "enabled": ()}, "one threshold, flag and temperature per exit, got 0, 0, 0"),
        ({"enabled": (True, True, True, False)}, "a policy cannot disable the final exit"),
        (
            {"score": "luck"},
            "score is one of confidence, margin, entropy, patience, learned and its answer one of exit,",
        ),
        ({"answer": "all"}, "got 'confidence' and 'all'"),
        ({"temperatures": (1.0, 0.0, 1.0, 1.0)}, "positive temperatures"),
        ({"temperatures": (1.0, math.nan, 1.0, 1.0)}, "positive temperatures"),
        ({"temperatures": (1.0, math.inf, 1.0, 1.0)}, "positive temperatures"),
        ({"patience": 0}, "a patience of 1 or more"),
        ({"thresholds": (0.1, math.nan, 0.1, 0.1)}, "thresholds that are finite numbers"),
        ({"thresholds": (0.1, math.inf, 0.1, 0.1)}, "thresholds that are finite numbers"),
    ],
)
def test_policies_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        policy(**changes)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def text(**changes: Any) -> str:
    result = {**json.loads(policy().to_json()), **changes}
    return json.dumps({key: value for key, value in result.items() if value != "absent"})


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{", "x.json is damaged: it is not JSON"),
        ("[]", "x.json is not a policy: its `format` is not `offramp-policy`"),
        ('{"format": "other"}', "x.json is not a policy: its `format`"),
        (text(version=2), "x.json has policy version 2; this offramp reads version 1"),
        (text(version="absent"), "x.json has policy version None"),
        (text(score="absent", patience="absent"), "x.json lacks score, patience"),
        (text(score="luck"), "x.json: a policy's score is one of"),
        (text(thresholds=[0.1]), "x.json: a policy needs one threshold, flag and temperature per exit, got 1, 4, 4"),
        (text(thresholds=0.5), "x.json: thresholds must be a list of numbers, got 0.5"),
        (text(thresholds=["a", 1, 1, 1]), "x.json: thresholds must be a list of numbers"),
        (text(enabled=["no", "no", "no", "yes"]), "x.json: enabled must be a list of true or false"),
        (text(thresholds=[10**400, 1, 1, 1]), "x.json: int too large"),
        (text(temperatures=None), "x.json: temperatures must be a list of numbers, got None"),
        ("[" * 100_000, "x.json is damaged: it is not JSON"),
        (text(patience="2"), "x.json: patience must be a whole number, got '2'"),
        (text(score=["margin"]), "x.json: score must be a text, got ['margin']"),
    ],
)
def test_files_that_hold_no_policy(written: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(written, "x.json")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match=r"policy\.json is not a policy: it is not text"):
        load(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load(tmp_path / "nowhere.json")
