"""Leaving early answers what the whole network would, whatever the batch, the arrays and the policy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offramp.early_exit.fixed_stay import FixedStay, step_once
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.early_exit.runtime import Answer, Stepper, answer
from offramp.net import MultiExitNet, segments
from offramp.outputs import Carry, State

EXITS, CLASSES, WIDTH, POOL = 4, 5, 8, 70


class Stage(nn.Module):
    """A linear stage; with `pair` its state is a tuple of two tensors of different shapes."""

    def __init__(self, enters: int, pair: bool) -> None:
        super().__init__()
        self.first, self.second, self.pair = nn.Linear(enters, WIDTH), nn.Linear(enters, 3), pair

    def forward(self, state: State) -> State:
        x = torch.cat([part.flatten(1) for part in state], 1) if isinstance(state, tuple) else state
        built = torch.tanh(3 * self.first(x))
        return (built, self.second(x)[:, :, None]) if self.pair else built


class Exit(nn.Module):
    """A linear exit; a chained one adds the previous exits' logits, handed along in the carry."""

    def __init__(self, enters: int, chained: bool) -> None:
        super().__init__()
        self.classifier, self.chained_exit = nn.Linear(enters, CLASSES), chained

    def forward(self, state: State, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        x = state[0] if isinstance(state, tuple) else state
        logits = 4 * self.classifier(x)
        if self.chained_exit:
            logits = logits + 0.5 * carry[0] if carry else logits
            carry = (logits, logits.sum(1))
        return logits, x, x, carry


def network(pair: bool = False, chained: bool = False) -> MultiExitNet:
    torch.manual_seed(1)
    stages = [Stage(6 if exit == 0 else WIDTH + 3 * pair, pair) for exit in range(EXITS)]
    return MultiExitNet(stages, [Exit(WIDTH, chained) for _ in range(EXITS)]).eval()


INPUTS = torch.randn(POOL, 6, generator=torch.Generator().manual_seed(2))


def in_numpy(segment: Callable[..., Any]) -> Callable[..., Any]:
    """The segment as a foreign runtime offers it: numpy in, numpy out."""

    def over(value: Any, convert: Callable[[Any], Any]) -> Any:
        return tuple(over(part, convert) for part in value) if isinstance(value, tuple) else convert(value)

    def run(state: Any, carry: Any) -> Any:
        return over(segment(over(state, torch.from_numpy), over(carry, torch.from_numpy)), lambda t: t.numpy())

    return run


def everything(net: MultiExitNet, policy: ExitPolicy, inputs: Tensor) -> tuple[list[Answer], Tensor]:
    """What each enabled exit would answer all samples, and which of them each sample takes: no sample ever leaves."""
    carry: dict[str, Any] = {}
    values, leaving = [], []
    logits = net(inputs).logits
    for exit in [exit for exit, on in enumerate(policy.enabled) if on]:
        carry, said, score, leaves = policy.step(carry, logits[exit], exit)
        values.append(Answer(said, torch.full((len(inputs),), exit), score))
        leaving.append(leaves)
    return values, torch.stack(leaving).int().argmax(0)


def reachable(net: MultiExitNet, policy: ExitPolicy) -> ExitPolicy:
    """The policy with each threshold in the widest gap of its scores' middle: rounding cannot carry anyone across."""
    thresholds = [NEVER] * EXITS
    for said in everything(net, policy, INPUTS)[0]:
        scores = said.score.sort().values[POOL // 2 : -POOL // 6]
        widest = scores.diff().argmax()
        thresholds[int(said.exit[0])] = float(scores[widest : widest + 2].mean())
    return ExitPolicy(**{**vars(policy), "thresholds": tuple(thresholds)})


ALL = (True,) * EXITS
POLICIES: dict[str, dict[str, Any]] = {
    "confidence": {},
    "margin": {"score": "margin"},
    "entropy with temperatures": {"score": "entropy", "temperatures": (0.5, 2.0, 1.0, 3.0)},
    "arithmetic": {"answer": "arithmetic"},
    "geometric": {"answer": "geometric"},
    "sum": {"answer": "sum"},
    "patience": {"score": "patience", "patience": 2},
    "patience of a sum": {"score": "patience", "patience": 2, "answer": "sum"},
    "two exits off": {"enabled": (False, True, False, True)},
    "first and sum off": {"enabled": (False, True, True, True), "answer": "sum"},
    "plain": {"enabled": (False, False, False, True)},
}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("pair", "chained"), [(False, False), (True, False), (False, True), (True, True)])
@torch.no_grad()
def test_an_answer_is_that_of_the_whole_network(kind: str, name: str, pair: bool, chained: bool) -> None:
    net = network(pair, chained)
    policy = reachable(net, ExitPolicy(**{"thresholds": (0.0,) * EXITS, "enabled": ALL, **POLICIES[name]}))
    parts: list[Any] = list(segments(net, policy.enabled))
    parts = list(map(in_numpy, parts)) if kind == "numpy" else parts
    values, taken = everything(net, policy, INPUTS)
    assert len(taken.unique()) == len(values) or "patience" in name, "a policy that uses every exit tests more"
    for size in (*range(1, 12), 31, 32, 33, 64, 69, 70):
        inputs = INPUTS[:size].numpy() if kind == "numpy" else INPUTS[:size]
        result = answer(parts, policy, inputs)
        assert all(isinstance(part, np.ndarray if kind == "numpy" else Tensor) for part in result)
        logits, exits, scores = (torch.as_tensor(part) for part in result)
        rows = torch.arange(size)
        for got, index in ((logits, 0), (scores, 2)):
            expected = torch.stack([said[index] for said in values])[taken[:size], rows]
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert exits.tolist() == torch.stack([said.exit for said in values])[taken[:size], rows].tolist()


@torch.no_grad()
def test_every_batch_size_gives_the_same_exits() -> None:
    net = network()
    policy = reachable(net, ExitPolicy(thresholds=(0.0,) * EXITS, enabled=ALL))
    whole = answer(segments(net), policy, INPUTS)
    for size in range(1, POOL + 1):
        result = [answer(segments(net), policy, part) for part in INPUTS.split(size)]
        assert torch.equal(torch.cat([part.exit for part in result]), whole.exit)
        logits = torch.cat([part.logits for part in result])
        torch.testing.assert_close(logits, whole.logits, rtol=0, atol=1e-5 * float(whole.logits.abs().max()))


class Counting:
    """A segment that notes how many samples it was given."""

    def __init__(self, segment: Callable[..., Any]) -> None:
        self.segment, self.seen = segment, list[int]()

    def __call__(self, state: Any, carry: Any) -> Any:
        self.seen.append(len(state[0] if isinstance(state, tuple) else state))
        return self.segment(state, carry)


@torch.no_grad()
def test_finished_samples_leave_the_batch() -> None:
    net = network(pair=True, chained=True)
    policy = reachable(net, ExitPolicy(thresholds=(0.0,) * EXITS, enabled=ALL))
    parts = [Counting(segment) for segment in segments(net)]
    result = answer(parts, policy, INPUTS)
    staying = [POOL - int((result.exit < exit).sum()) for exit in range(EXITS)]
    assert [part.seen for part in parts] == [[count] for count in staying]
    assert len(set(staying)) == EXITS


@torch.no_grad()
def test_deeper_segments_do_not_run_once_all_have_left() -> None:
    parts = [Counting(segment) for segment in segments(network())]
    result = answer(parts, ExitPolicy(thresholds=(NEVER, -1.0, 0.5, 0.5), enabled=ALL), INPUTS)
    assert [part.seen for part in parts] == [[POOL], [POOL], [], []]
    assert result.exit.tolist() == [1] * POOL


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@torch.no_grad()
def test_inputs_and_segments_answers_are_left_as_they_were(kind: str) -> None:
    net = network()
    passed_on: list[tuple[Any, Any]] = []

    def keep(segment: Callable[..., Any]) -> Callable[..., Any]:
        def run(state: Any, carry: Any) -> Any:
            built = segment(state, carry)
            passed_on.extend((part, part.copy() if kind == "numpy" else part.clone()) for part in (state, built[2]))
            return built

        return run

    parts: list[Any] = list(segments(net))
    parts = [keep(in_numpy(part) if kind == "numpy" else part) for part in parts]
    for changes in ({}, {"answer": "sum"}, {"score": "patience", "patience": 2}):
        policy = reachable(net, ExitPolicy(**{"thresholds": (0.0,) * EXITS, "enabled": ALL, **changes}))
        answer(parts, policy, INPUTS.numpy() if kind == "numpy" else INPUTS)
    assert len(passed_on) == 3 * 2 * EXITS
    for tensor, copy in passed_on:
        assert (tensor == copy).all()


@torch.no_grad()
def test_a_stepper_can_stop_anywhere_with_the_best_answer_so_far() -> None:
    net = network()
    policy = reachable(net, ExitPolicy(thresholds=(0.0,) * EXITS, enabled=(True, False, True, True)))
    values, taken = everything(net, policy, INPUTS)
    stepper = Stepper(policy, INPUTS)
    assert stepper.answer is None and not stepper.done
    for passed, segment in enumerate(segments(net, policy.enabled)):
        stepper.advance(segment)
        assert stepper.answer is not None
        assert stepper.answer.exit.tolist() == [(0, 2, 3)[min(exit, passed)] for exit in taken.tolist()]
        expected = torch.stack([said.logits for said in values])[taken.clamp(max=passed), torch.arange(POOL)]
        torch.testing.assert_close(stepper.answer.logits, expected, rtol=0, atol=1e-4)
        assert stepper.done == (passed == 2)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("threshold", [0.0, 1e8])
@torch.no_grad()
def test_a_benchmark_policy_says_how_many_samples_continue(threshold: float, kind: str) -> None:
    """Whatever the policy says of them, through all segments and from one segment on."""
    net = network()
    policy = ExitPolicy(
        thresholds=(threshold,) * EXITS, enabled=(True, False, True, True), answer="arithmetic", score="patience"
    )
    parts, inputs = segments(net, policy.enabled), INPUTS[:9]
    if kind == "numpy":
        parts, inputs = [in_numpy(part) for part in parts], inputs.numpy()
    staying = FixedStay(policy, {0: 5, 2: 1})
    stepper = Stepper(staying, inputs)
    for part, there in zip(parts, (9, 5, 1), strict=True):
        assert len(stepper.alive if stepper.passed else inputs) == there and not stepper.done
        stepper.advance(part)
    assert stepper.done and stepper.answer is not None
    assert stepper.answer.exit.tolist() == [3, 2, 2, 2, 2, 0, 0, 0, 0]
    built = parts[0](inputs, ())
    from_there = step_once(FixedStay(policy, {0: 4}), {}, built, 0)
    assert len(from_there.alive) == 4 and all(len(value) == 4 for value in from_there.policy_carry.values())
    alone = parts[0](inputs[:1], ())
    assert not step_once(FixedStay(policy, {0: 0}), {}, alone, 0).done


@torch.no_grad()
def test_bfloat16_answers_are_judged_in_float32() -> None:
    net = network().bfloat16()
    result = answer(segments(net), ExitPolicy(thresholds=(0.6,) * EXITS, enabled=ALL), INPUTS.bfloat16())
    assert result.logits.dtype == result.score.dtype == torch.float32 and result.exit.dtype == torch.int64


@torch.no_grad()
def test_an_empty_batch_has_an_empty_answer() -> None:
    result = answer(segments(network()), ExitPolicy(thresholds=(0.6,) * EXITS, enabled=ALL), INPUTS[:0])
    assert result.logits.shape == (0, CLASSES) and result.exit.shape == result.score.shape == (0,)


@pytest.mark.parametrize("enabled", [(True,) * EXITS, (True, False, False, True)])
def test_segments_that_do_not_fit_the_policy(enabled: tuple[bool, ...]) -> None:
    policy = ExitPolicy(thresholds=(0.5,) * EXITS, enabled=enabled)
    says = f"the policy enables {sum(enabled)} exits, but there are 3 segments"
    with pytest.raises(ValueError, match=says):
        answer(segments(network())[:3], policy, INPUTS)


ANSWERS = """
import sys
import numpy as np
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import parse
from offramp.early_exit.runtime import answer
rows = np.random.default_rng(0)
weights = rows.standard_normal((3, 6, 6)).astype("float32")
def segment(weight):
    return lambda state, carry: (np.tanh(state @ weight), carry, 3 * (state @ weight)[:, :4])
for changes in ({}, {"score": "margin"}, {"score": "entropy"}, {"answer": "arithmetic"}, {"answer": "geometric"},
                {"answer": "sum"}, {"score": "patience", "patience": 2}):
    policy = ExitPolicy(thresholds=(0.9, 0.6, 0.0), enabled=(True,) * 3, **changes)
    policy = parse(policy.to_json())
    found = answer([segment(weight) for weight in weights], policy, rows.standard_normal((50, 6)).astype("float32"))
    assert len(set(found.exit.tolist())) > 1, changes
assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
"""


def test_it_runs_where_torch_does_not_exist(without_torch: Callable[..., str]) -> None:
    assert without_torch(ANSWERS) == ""  # its assertions hold, and nothing warns


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@torch.no_grad()
def test_a_stepper_says_who_is_still_here_and_does_not_go_on_without_anyone(kind: str) -> None:
    net = network()
    parts: list[Any] = list(segments(net))
    inputs: Any = INPUTS[:6]
    if kind == "numpy":
        parts, inputs = list(map(in_numpy, parts)), inputs.numpy()
    stepper = Stepper(ExitPolicy(thresholds=(NEVER, 0.0, 0.0, 0.0), enabled=ALL), inputs)
    with pytest.raises(ValueError, match="no segment has run yet"):
        _ = stepper.alive
    stepper.advance(parts[0])
    assert stepper.alive.tolist() == [0, 1, 2, 3, 4, 5] and not stepper.done
    stepper.advance(parts[1])
    assert stepper.alive.tolist() == [] and stepper.done
    values = stepper.answer
    assert values is not None and values.exit.tolist() == [1] * 6
    with pytest.raises(ValueError, match="every sample has exited"):
        stepper.advance(parts[2])
